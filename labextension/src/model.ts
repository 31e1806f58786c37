/**
 * What the panel shows, kept up to date by a poll that rests while nobody looks.
 */
import { ServerConnection } from '@jupyterlab/services';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import { fetchStatus, IStatus, StatusError } from './api';

/** The longest pause between two tries while the server does not answer. */
const MAX_INTERVAL = 60_000;

export class StatusModel {
  constructor(private readonly _settings: ServerConnection.ISettings) {
    this._poll = new Poll({
      name: 'jupyter-wsfuse:status',
      auto: true,
      factory: () => this._fetch(),
      frequency: { interval: 3000, backoff: true, max: MAX_INTERVAL },
      standby: () => (this._watched ? 'when-hidden' : true)
    });
  }

  /** Emitted when `status` or `error` changed. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** The last status received, or null before the first one. */
  get status(): IStatus | null {
    return this._status;
  }

  /** Why the last look failed, or null if it succeeded. */
  get error(): StatusError | null {
    return this._error;
  }

  /** Whether somebody is looking; the poll stands by otherwise. */
  set watched(watched: boolean) {
    this._watched = watched;
    if (watched) {
      this.refresh();
    }
  }

  /** Milliseconds between two looks. */
  set interval(interval: number) {
    this._poll.frequency = { interval, backoff: true, max: Math.max(interval, MAX_INTERVAL) };
  }

  /** Look now. */
  refresh(): void {
    // A refresh that fails is shown by the panel, and the poll goes on by itself.
    this._poll.refresh().catch(() => undefined);
  }

  dispose(): void {
    if (this._poll.isDisposed) {
      return;
    }
    this._poll.dispose();
    Signal.clearData(this);
  }

  private async _fetch(): Promise<void> {
    try {
      this._status = await fetchStatus(this._settings);
      this._error = null;
    } catch (error) {
      this._error =
        error instanceof StatusError ? error : new StatusError('unexpected', String(error));
      throw error; // a rejected look makes the poll back off
    } finally {
      if (!this._poll.isDisposed) {
        this._changed.emit();
      }
    }
  }

  private readonly _poll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private _status: IStatus | null = null;
  private _error: StatusError | null = null;
  private _watched = false;
}
