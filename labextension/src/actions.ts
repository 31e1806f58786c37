/** What the panel does, over REST. */
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

export class ActionError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly advice: string,
    readonly body: any
  ) {
    super(message);
    this.name = 'ActionError';
  }
}

export class Actions {
  constructor(private readonly _settings: ServerConnection.ISettings) {}

  mount(path: string, readOnly: boolean): Promise<{ id: string; path: string }> {
    return this._ask('mounts', 'POST', { path, read_only: readOnly });
  }

  unmount(id: string, force: boolean): Promise<{ outcome: string; warnings?: string[] }> {
    return this._ask(`mounts/${encodeURIComponent(id)}?force=${force ? 1 : 0}`, 'DELETE');
  }

  sync(id: string): Promise<unknown> {
    return this._ask(`mounts/${encodeURIComponent(id)}/sync`, 'POST', {});
  }

  resetProfile(scope: string): Promise<unknown> {
    return this._ask('profile/reset', 'POST', { scope });
  }

  verify(): Promise<{ proofs: any[] }> {
    return this._ask('audit/verify', 'GET');
  }

  token(wish: {
    paths: string[];
    rights: string[];
    expires: number;
    label: string;
  }): Promise<{ token: string }> {
    return this._ask('tokens', 'POST', wish);
  }

  private async _ask(path: string, method: string, body?: unknown): Promise<any> {
    const url = URLExt.join(this._settings.baseUrl, 'wsfuse', 'api') + '/' + path;
    const init: RequestInit = { method };
    if (body !== undefined) {
      init.body = JSON.stringify(body);
    }
    const response = await ServerConnection.makeRequest(url, init, this._settings);
    let said: any = null;
    try {
      said = await response.json();
    } catch {
      // an empty answer, or one of a proxy
    }
    if (!response.ok) {
      throw new ActionError(
        response.status,
        String(said?.message ?? `${response.status} ${response.statusText}`),
        String(said?.advice ?? ''),
        said
      );
    }
    return said;
  }
}
