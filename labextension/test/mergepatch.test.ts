import * as assert from 'node:assert/strict';
import { test } from 'node:test';

import { mergePatch } from '../src/mergepatch';

const plain = (value: unknown) => JSON.parse(JSON.stringify(value));

// The examples of RFC 7396, appendix A.
const EXAMPLES: [any, any, any][] = [
  [{ a: 'b' }, { a: 'c' }, { a: 'c' }],
  [{ a: 'b' }, { b: 'c' }, { a: 'b', b: 'c' }],
  [{ a: 'b' }, { a: null }, {}],
  [{ a: 'b', b: 'c' }, { a: null }, { b: 'c' }],
  [{ a: ['b'] }, { a: 'c' }, { a: 'c' }],
  [{ a: 'c' }, { a: ['b'] }, { a: ['b'] }],
  [{ a: { b: 'c' } }, { a: { b: 'd', c: null } }, { a: { b: 'd' } }],
  [{ a: [{ b: 'c' }] }, { a: [1] }, { a: [1] }],
  [['a', 'b'], ['c', 'd'], ['c', 'd']],
  [{ a: 'b' }, ['c'], ['c']],
  [{ a: 'foo' }, null, null],
  [{ a: 'foo' }, 'bar', 'bar'],
  [{ e: null }, { a: 1 }, { e: null, a: 1 }],
  [[1, 2], { a: 'b', c: null }, { a: 'b' }],
  [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }]
];

test('the examples of the standard', () => {
  for (const [target, patch, result] of EXAMPLES) {
    assert.deepEqual(plain(mergePatch(target, patch)), result);
  }
});

test('what is not touched stays the same object, and nothing is changed in place', () => {
  const target = { a: { x: 1 }, b: { y: 2 } };
  const result = mergePatch(target, { b: { y: 3 } }) as any;
  assert.equal(result.a, target.a);
  assert.equal(target.b.y, 2);
});

test('a name that objects have of themselves is a name like others', () => {
  const result = mergePatch({}, JSON.parse('{"__proto__": {"polluted": true}, "toString": 1}')) as any;
  assert.equal(({} as any).polluted, undefined);
  assert.equal(result.toString, 1);
});
