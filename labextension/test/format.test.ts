import * as assert from 'node:assert/strict';
import { test } from 'node:test';

import { bytes, count, duration, percent, visibleRows } from '../src/format';

test('numbers for people', () => {
  assert.equal(bytes(0), '0 B');
  assert.equal(bytes(1023), '1023 B');
  assert.equal(bytes(1536), '1.5 KiB');
  assert.equal(bytes(64 << 20), '64 MiB');
  assert.equal(bytes(undefined), '–');
  assert.equal(duration(12.4), '12 µs');
  assert.equal(duration(1500), '1.5 ms');
  assert.equal(duration(25_000), '25 ms');
  assert.equal(duration(2_500_000), '2.5 s');
  assert.equal(count(1234567), '1,234,567');
  assert.equal(percent(0.123), '12 %');
});

test('of a long list only what is in sight is drawn', () => {
  assert.deepEqual(visibleRows(0, 520, 52, 100_000), [0, 20]);
  assert.deepEqual(visibleRows(52_000, 520, 52, 100_000), [990, 1020]);
  assert.deepEqual(visibleRows(52 * 99_995, 520, 52, 100_000), [99_985, 100_000]);
  assert.deepEqual(visibleRows(1e9, 520, 52, 5), [5, 5]);
  assert.deepEqual(visibleRows(0, 520, 52, 0), [0, 0]);
});
