/**
 * The server's status endpoint: its shape, and one function that asks it.
 */
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** The wire protocol this front end was written for; the server names its own in every status. */
export const PROTOCOL = 1;

export interface IEngine {
  state: 'running' | 'stopped' | 'starting' | 'failed';
  pid: number | null;
  restarts: number;
  error: string | null;
}

export interface ISession {
  id: string;
  client: string;
  transport: 'direct' | 'relay';
  connected: boolean;
  handles: number;
  requests: number;
  /** Seconds since the epoch. */
  since: number;
}

export interface IStatus {
  version: string;
  protocol: number;
  engine: IEngine;
  sessions: ISession[];
}

/** Why there is no status to show; the panel turns each into what the user can do about it. */
export type Problem = 'not-installed' | 'forbidden' | 'unreachable' | 'unexpected';

export class StatusError extends Error {
  constructor(
    readonly problem: Problem,
    message: string
  ) {
    super(message);
    this.name = 'StatusError';
  }
}

/**
 * Ask the server for its mounts.
 *
 * The request is marked so that it does not count as activity: an open panel must not keep an
 * otherwise idle server from being culled.
 *
 * @throws StatusError for every failure.
 */
export async function fetchStatus(settings: ServerConnection.ISettings): Promise<IStatus> {
  const url =
    URLExt.join(settings.baseUrl, 'wsfuse', 'api', 'status') +
    URLExt.objectToQueryString({ no_track_activity: 1 });
  let response: Response;
  try {
    response = await ServerConnection.makeRequest(url, {}, settings);
  } catch (error) {
    throw new StatusError('unreachable', String(error));
  }
  if (!response.ok) {
    const problem: Problem =
      response.status === 404
        ? 'not-installed'
        : response.status === 401 || response.status === 403
          ? 'forbidden'
          : 'unexpected';
    throw new StatusError(problem, `${response.status} ${response.statusText}`);
  }
  let body: unknown;
  try {
    body = await response.json();
  } catch (error) {
    throw new StatusError('unexpected', String(error));
  }
  if (!isStatus(body)) {
    throw new StatusError('unexpected', 'the status has an unknown form');
  }
  return body;
}

/**
 * Whether `body` has what the panel needs. A server of another protocol version passes with its
 * version number alone: the panel says that the versions differ and shows nothing else of it.
 */
function isStatus(body: unknown): body is IStatus {
  const status = body as Partial<IStatus> | null;
  if (typeof status?.protocol !== 'number') {
    return false;
  }
  return (
    status.protocol !== PROTOCOL ||
    (typeof status.engine?.state === 'string' && Array.isArray(status.sessions))
  );
}
