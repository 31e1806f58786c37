/**
 * One WebSocket to the server's feed: versions, standby, backoff. It knows nothing of JupyterLab, so that tests can drive it.
 */
import { Json, mergePatch } from './mergepatch';
import { IEntry, IHello, IState, View } from './state';

/** Versions of the feed that this page speaks. */
export const SPOKEN = [1];

const MISMATCH = 4406;
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;
/** Milliseconds that the server may take to say hello. */
const GREETING = 20_000;

export type Trouble = 'not-installed' | 'forbidden' | 'unreachable' | 'mismatch';

export interface IFeedEvents {
  hello(hello: IHello): void;
  state(state: IState): void;
  audit(entries: IEntry[], missed: number, reset: boolean): void;
  changed(paths: string[], more: boolean): void;
  /** The connection is gone, or was never there; null: all is well. */
  trouble(kind: Trouble | null, detail: string): void;
}

export interface ISocket {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  send(text: string): void;
  close(): void;
}

export interface IFeedOptions {
  /** Opens a socket to the feed. */
  connect(): ISocket;
  /** Asks over HTTP why there is none. */
  diagnose(): Promise<Trouble>;
  version: string;
  events: IFeedEvents;
  later?(work: () => void, milliseconds: number): number;
  never?(timer: number): void;
  random?(): number;
}

export class Feed {
  constructor(private readonly _options: IFeedOptions) {}

  /** What to be told; nothing: the connection is given up until something is watched again. */
  watch(views: readonly View[], filter: Record<string, string>): void {
    const watched = JSON.stringify({ type: 'watch', views, audit: filter });
    const same = watched === this._watched;
    this._watched = watched;
    this._any = views.length > 0;
    if (this._any && !this._socket && this._timer === null && !this._ended) {
      this._open();
    } else if (this._greeted && !same) {
      this._socket?.send(watched);
    }
  }

  /** Try again now, whatever was wrong. */
  retry(): void {
    if (this._disposed || (this._socket && this._greeted)) {
      return;
    }
    this._cancel();
    this._drop();
    this._ended = false;
    this._pause = FIRST_PAUSE;
    this._open();
  }

  dispose(): void {
    this._disposed = true;
    this._cancel();
    this._drop();
  }

  private _open(): void {
    if (this._disposed) {
      return;
    }
    const socket = this._options.connect();
    this._socket = socket;
    this._greeted = false;
    this._timer = this._later(() => {
      this._timer = null;
      if (socket === this._socket && !this._greeted) {
        this._drop();
        this._closed(1006);
      }
    }, GREETING);
    socket.onopen = () => {
      if (socket === this._socket) {
        socket.send(JSON.stringify({ type: 'hello', feed: SPOKEN, version: this._options.version }));
      }
    };
    socket.onmessage = event => {
      if (socket === this._socket) {
        this._received(String(event.data));
      }
    };
    socket.onclose = event => {
      if (socket === this._socket) {
        this._closed(event?.code ?? 1006);
      }
    };
  }

  private _received(text: string): void {
    let message: any;
    try {
      message = JSON.parse(text);
    } catch {
      return; // as of a newer server
    }
    const { events } = this._options;
    switch (message?.type) {
      case 'hello':
        this._cancel();
        this._greeted = true;
        this._pause = FIRST_PAUSE;
        this._seq = 0;
        this._state = {};
        events.hello({
          version: String(message.version ?? ''),
          may: message.may ?? {},
          fuse: message.fuse ?? {},
          root: String(message.root ?? '')
        });
        events.trouble(null, '');
        this._socket?.send(this._watched);
        break;
      case 'mismatch':
        this._cancel();
        this._ended = true;
        events.trouble('mismatch', String(message.version ?? ''));
        break;
      case 'state':
        this._seq = message.seq;
        this._state = message.state ?? {};
        events.state(this._state as IState);
        break;
      case 'delta':
        if (message.seq !== this._seq + 1) {
          this._seq = NaN; // until the whole comes, nothing fits
          this._socket?.send(JSON.stringify({ type: 'resync' }));
          break;
        }
        this._seq = message.seq;
        this._state = mergePatch(this._state, message.patch ?? {});
        events.state(this._state as IState);
        break;
      case 'audit':
        events.audit(message.entries ?? [], message.missed ?? 0, !!message.reset);
        break;
      case 'changed':
        events.changed(message.paths ?? [], !!message.more);
        break;
    }
  }

  private _closed(code: number): void {
    this._socket = null;
    this._greeted = false;
    this._cancel();
    if (this._disposed) {
      return;
    }
    if (code === MISMATCH || this._ended) {
      this._ended = true;
      return;
    }
    const { random, diagnose, events } = this._options;
    const pause = this._pause * (0.75 + 0.5 * (random ?? Math.random)());
    this._pause = Math.min(2 * this._pause, LONGEST_PAUSE);
    this._timer = this._later(() => {
      this._timer = null;
      if (this._any) {
        this._open();
      }
    }, pause);
    diagnose().then(
      trouble => {
        if (!this._disposed && !this._greeted) {
          events.trouble(trouble, '');
        }
      },
      () => undefined
    );
  }

  private _later(work: () => void, milliseconds: number): number {
    const { later } = this._options;
    return later ? later(work, milliseconds) : window.setTimeout(work, milliseconds);
  }

  private _drop(): void {
    const socket = this._socket;
    this._socket = null;
    this._greeted = false;
    socket?.close();
  }

  private _cancel(): void {
    if (this._timer !== null) {
      (this._options.never ?? (timer => window.clearTimeout(timer)))(this._timer);
      this._timer = null;
    }
  }

  private _socket: ISocket | null = null;
  private _greeted = false;
  private _ended = false;
  private _disposed = false;
  private _any = false;
  private _watched = JSON.stringify({ type: 'watch', views: [], audit: {} });
  private _pause = FIRST_PAUSE;
  private _timer: number | null = null;
  private _seq = 0;
  private _state: Json = {};
}
