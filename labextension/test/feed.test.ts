import * as assert from 'node:assert/strict';
import { test } from 'node:test';

import { Feed, ISocket, Trouble } from '../src/feed';

class Socket implements ISocket {
  onopen: any = null;
  onmessage: any = null;
  onclose: any = null;
  sent: any[] = [];
  closed = false;

  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  close(): void {
    this.closed = true;
  }

  says(message: unknown): void {
    this.onmessage({ data: typeof message === 'string' ? message : JSON.stringify(message) });
  }
}

class World {
  sockets: Socket[] = [];
  timers: { work: () => void; milliseconds: number; greeting: boolean }[] = [];
  told: any[] = [];
  trouble: Trouble = 'unreachable';
  feed = new Feed({
    version: '1.2.3',
    connect: () => {
      const socket = new Socket();
      this.sockets.push(socket);
      return socket;
    },
    diagnose: async () => this.trouble,
    events: {
      hello: hello => this.told.push(['hello', hello.version]),
      state: state => this.told.push(['state', JSON.parse(JSON.stringify(state))]),
      audit: (entries, missed, reset) => this.told.push(['audit', entries.length, missed, reset]),
      changed: (paths, more) => this.told.push(['changed', paths, more]),
      trouble: (kind, detail) => this.told.push(['trouble', kind, detail])
    },
    later: (work, milliseconds) =>
      this.timers.push({ work, milliseconds, greeting: milliseconds === 20_000 }),
    never: timer => {
      this.timers[timer - 1].work = () => undefined;
    },
    random: () => 0.5
  });

  /** Those that were set to try again, and not to wait for a hello. */
  get pauses(): { work: () => void; milliseconds: number }[] {
    return this.timers.filter(({ greeting }) => !greeting);
  }

  get last(): Socket {
    return this.sockets[this.sockets.length - 1];
  }

  greet(): Socket {
    const socket = this.last;
    socket.onopen({});
    socket.says({ type: 'hello', feed: 1, version: '9' });
    return socket;
  }
}

test('it is silent until somebody looks', () => {
  const world = new World();
  world.feed.watch([], {});
  assert.equal(world.sockets.length, 0);
  world.feed.watch(['mounts'], {});
  const socket = world.greet();
  assert.deepEqual(socket.sent, [
    { type: 'hello', feed: [1], version: '1.2.3' },
    { type: 'watch', views: ['mounts'], audit: {} }
  ]);
  world.feed.watch(['mounts'], {});
  assert.equal(socket.sent.length, 2);
  world.feed.watch([], {});
  assert.deepEqual(socket.sent[2], { type: 'watch', views: [], audit: {} });
});

test('patches are applied in order, and a gap asks for the whole', () => {
  const world = new World();
  world.feed.watch(['mounts'], {});
  const socket = world.greet();
  socket.says({ type: 'state', seq: 1, state: { mounts: { a: { held: 1 } } } });
  socket.says({ type: 'delta', seq: 2, patch: { mounts: { a: { held: 2 }, b: {} } } });
  socket.says({ type: 'delta', seq: 4, patch: { mounts: { a: { held: 4 } } } });
  socket.says({ type: 'delta', seq: 5, patch: { mounts: { a: { held: 5 } } } });
  socket.says({ type: 'state', seq: 6, state: { mounts: {} } });
  const states = world.told.filter(([kind]) => kind === 'state').map(([, state]) => state);
  assert.deepEqual(states, [
    { mounts: { a: { held: 1 } } },
    { mounts: { a: { held: 2 }, b: {} } },
    { mounts: {} }
  ]);
  assert.ok(socket.sent.some(({ type }) => type === 'resync'));
});

test('what is not understood is passed over', () => {
  const world = new World();
  world.feed.watch(['audit'], { denied: 'true' });
  const socket = world.greet();
  socket.says('no json');
  socket.says({ type: 'of a newer server' });
  socket.says({ type: 'audit', entries: [{}, {}], missed: 3, reset: true });
  socket.says({ type: 'changed', paths: ['a'] });
  assert.deepEqual(world.told.slice(2), [
    ['audit', 2, 3, true],
    ['changed', ['a'], false]
  ]);
});

test('a connection that goes is tried again, each time later, and the reason is told', async () => {
  const world = new World();
  world.trouble = 'not-installed';
  world.feed.watch(['mounts'], {});
  for (let attempt = 0; attempt < 9; attempt++) {
    world.last.onclose({ code: 1006 });
    await Promise.resolve();
    await Promise.resolve();
    world.pauses[world.pauses.length - 1].work();
  }
  assert.deepEqual(
    world.pauses.map(({ milliseconds }) => milliseconds),
    [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]
  );
  assert.deepEqual(world.told[0], ['trouble', 'not-installed', '']);
  world.greet();
  assert.deepEqual(world.told[world.told.length - 1], ['trouble', null, '']);
  world.last.onclose({ code: 1006 });
  assert.equal(world.pauses[world.pauses.length - 1].milliseconds, 500);
});

test('it does not try again while nobody looks', () => {
  const world = new World();
  world.feed.watch(['mounts'], {});
  world.greet();
  world.feed.watch([], {});
  world.last.onclose({ code: 1006 });
  world.pauses[0].work();
  assert.equal(world.sockets.length, 1);
  world.feed.watch(['mounts'], {});
  assert.equal(world.sockets.length, 2);
});

test('a server of another version ends it until the user tries again', () => {
  const world = new World();
  world.feed.watch(['mounts'], {});
  world.last.onopen({});
  world.last.says({ type: 'mismatch', feed: [2], version: '2.0.0' });
  world.last.onclose({ code: 4406 });
  assert.deepEqual(world.told, [['trouble', 'mismatch', '2.0.0']]);
  assert.equal(world.pauses.length, 0);
  world.feed.watch(['profile'], {});
  assert.equal(world.sockets.length, 1);
  world.feed.retry();
  assert.equal(world.sockets.length, 2);
});

test('after it is disposed of nothing happens any more', () => {
  const world = new World();
  world.feed.watch(['mounts'], {});
  const socket = world.greet();
  const told = world.told.length;
  world.feed.dispose();
  assert.ok(socket.closed);
  socket.says({ type: 'changed', paths: [] });
  socket.onclose({ code: 1000 });
  world.feed.retry();
  assert.equal(world.told.length, told);
  assert.equal(world.sockets.length, 1);
});

test('a server that never says hello is given up, and tried again', async () => {
  const world = new World();
  world.feed.watch(['mounts'], {});
  const socket = world.last;
  socket.onopen({});
  world.timers[0].work();
  assert.ok(socket.closed);
  await Promise.resolve();
  await Promise.resolve();
  assert.deepEqual(world.told, [['trouble', 'unreachable', '']]);
  world.pauses[0].work();
  assert.equal(world.sockets.length, 2);
  world.greet();
  world.timers[2].work();
  assert.ok(!world.last.closed);
});
