/** What the panel shows, as the feed tells it. */
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import { ISignal, Signal } from '@lumino/signaling';

import { Feed, ISocket, Trouble } from './feed';
import { IEntry, IHello, IOperation, IProfile, IState, View, VIEWS } from './state';

/** Entries of the audit log that are kept here. */
export const MOST_ENTRIES = 100_000;
/** Points of the chart. */
const MOST_POINTS = 120;

export interface IPoint {
  time: number;
  rate: number;
  /** Mean of what was answered since the point before, in microseconds. */
  latency: number;
}

export class PanelModel {
  constructor(
    private readonly _settings: ServerConnection.ISettings,
    readonly version: string
  ) {
    this._feed = new Feed({
      version,
      connect: () => this._connect(),
      diagnose: () => this._diagnose(),
      events: {
        hello: hello => {
          this.hello = hello;
        },
        state: state => {
          this.state = state;
          this._note(state);
          this._changed.emit();
        },
        audit: (entries, missed, reset) => this._audit(entries, missed, reset),
        changed: (paths, more) => this._files.emit({ paths, more }),
        trouble: (kind, detail) => {
          this.trouble = kind;
          this.detail = detail;
          this._changed.emit();
        }
      }
    });
    this._onVisibility = () => this._watch();
    document.addEventListener('visibilitychange', this._onVisibility);
  }

  hello: IHello | null = null;
  state: IState | null = null;
  trouble: Trouble | null = null;
  detail = '';
  /** The audit log's entries that match the filter, oldest first. */
  entries: IEntry[] = [];
  missed = 0;

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get filesChanged(): ISignal<this, { paths: string[]; more: boolean }> {
    return this._files;
  }

  get filter(): Record<string, string> {
    return this._filter;
  }

  set filter(filter: Record<string, string>) {
    this._filter = filter;
    this._watch();
  }

  /** Which view of the panel is seen; null: none. */
  set seen(view: View | null) {
    this._seen = view;
    this._watch();
  }

  /** Whether the mounts are shown elsewhere: in the status bar. */
  set background(wanted: boolean) {
    this._background = wanted;
    this._watch();
  }

  retry(): void {
    this._feed.retry();
  }

  points(scope: string): IPoint[] {
    return this._points.get(scope) ?? [];
  }

  dispose(): void {
    if (this._isDisposed) {
      return;
    }
    this._isDisposed = true;
    document.removeEventListener('visibilitychange', this._onVisibility);
    this._feed.dispose();
    Signal.clearData(this);
  }

  private _watch(): void {
    const views = new Set<View>();
    if (!document.hidden) {
      if (this._background || this._seen) {
        views.add('mounts');
      }
      if (this._seen) {
        views.add(this._seen);
      }
    }
    this._feed.watch(
      VIEWS.filter(view => views.has(view)),
      views.has('audit') ? this._filter : {}
    );
  }

  private _connect(): ISocket {
    const { wsUrl, token, appendToken, WebSocket } = this._settings;
    let url = URLExt.join(wsUrl, 'wsfuse', 'feed');
    if (appendToken && token) {
      url += `?token=${encodeURIComponent(token)}`;
    }
    return new WebSocket(url) as ISocket;
  }

  private async _diagnose(): Promise<Trouble> {
    const url =
      URLExt.join(this._settings.baseUrl, 'wsfuse', 'api', 'status') + '?no_track_activity=1';
    try {
      const { status } = await ServerConnection.makeRequest(url, {}, this._settings);
      return status === 404
        ? 'not-installed'
        : status === 401 || status === 403
          ? 'forbidden'
          : 'unreachable';
    } catch {
      return 'unreachable';
    }
  }

  private _audit(entries: IEntry[], missed: number, reset: boolean): void {
    const kept = reset ? [] : this.entries;
    this.entries = kept.concat(entries).slice(-MOST_ENTRIES);
    this.missed = reset ? missed : this.missed + missed;
    this._changed.emit();
  }

  private _note(state: IState): void {
    const profile = state.profile ?? {};
    for (const scope of [...this._points.keys()]) {
      if (!(scope in profile)) {
        this._points.delete(scope);
        this._totals.delete(scope);
      }
    }
    for (const [scope, found] of Object.entries(profile)) {
      const [answered, spent] = totals(found);
      const before = this._totals.get(scope);
      this._totals.set(scope, [answered, spent]);
      const grown = before !== undefined && answered > before[0];
      const latency = grown ? Math.max(0, (spent - before[1]) / (answered - before[0])) : 0;
      const points = this._points.get(scope) ?? [];
      points.push({ time: Date.now() / 1000, rate: found.rate ?? 0, latency });
      this._points.set(scope, points.slice(-MOST_POINTS));
    }
  }

  private readonly _feed: Feed;
  private readonly _onVisibility: () => void;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _files = new Signal<this, { paths: string[]; more: boolean }>(this);
  private readonly _points = new Map<string, IPoint[]>();
  private readonly _totals = new Map<string, [number, number]>();
  private _filter: Record<string, string> = {};
  private _seen: View | null = null;
  private _background = false;
  private _isDisposed = false;
}

function totals(profile: IProfile): [number, number] {
  let answered = 0;
  let spent = 0;
  for (const operation of Object.values(profile.operations ?? {}) as IOperation[]) {
    answered += operation.count;
    spent += operation.count * (operation.mean_us ?? 0);
  }
  return [answered, spent];
}
