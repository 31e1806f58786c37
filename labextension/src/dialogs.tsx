/** What the panel asks and tells in dialogs. */
import { Clipboard, Dialog, InputDialog, Notification, showDialog } from '@jupyterlab/apputils';
import { PageConfig } from '@jupyterlab/coreutils';
import { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { ActionError, Actions } from './actions';
import { bytes } from './format';
import { IMount } from './state';

/** Run *work*; what it fails with is shown, with what to do about it. */
export async function attempt(what: string, work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    const advice = error instanceof ActionError ? error.advice : '';
    const message = error instanceof Error ? error.message : String(error);
    Notification.error([`${what}: ${message}`, advice].filter(Boolean).join('\n'), {
      autoClose: false
    });
    return false;
  }
}

export async function askMount(actions: Actions, trans: TranslationBundle): Promise<void> {
  const { value, button } = await InputDialog.getText({
    title: trans.__('Mount the workspace on the server’s machine'),
    label: trans.__('Folder: absolute, with ~/, or relative to the file browser. It is made if it is missing.'),
    text: '~/wsfuse',
    okLabel: trans.__('Mount')
  });
  if (button.accept && value) {
    await attempt(trans.__('Mount'), () => actions.mount(value, false));
  }
}

export async function askUnmount(
  actions: Actions,
  trans: TranslationBundle,
  id: string,
  mount: IMount
): Promise<void> {
  const name = mount.path ?? id;
  try {
    const { warnings } = await actions.unmount(id, false);
    for (const warning of warnings ?? []) {
      Notification.warning(warning);
    }
    return;
  } catch (error) {
    if (!(error instanceof ActionError) || error.status !== 409) {
      await attempt(trans.__('Unmount'), () => Promise.reject(error));
      return;
    }
    const users: { pid: number; name: string }[] = error.body?.users ?? [];
    const unsynced: { path: string; bytes: number }[] = error.body?.unsynced ?? [];
    const { button } = await showDialog({
      title: trans.__('%1 cannot be unmounted', name),
      body: ReactWidget.create(
        <div>
          <p>{error.message}</p>
          <ul>
            {users.map(user => (
              <li key={user.pid}>{trans.__('%1 (process %2) uses it', user.name, user.pid)}</li>
            ))}
            {unsynced.map(file => (
              <li key={file.path}>
                {trans.__('%1: %2 are not on the server', file.path, bytes(file.bytes))}
              </li>
            ))}
          </ul>
          <p>{error.advice}</p>
        </div>
      ),
      buttons: [
        Dialog.cancelButton(),
        Dialog.warnButton({ label: trans.__('Unmount by force') })
      ],
      defaultButton: 0
    });
    if (button.accept) {
      await attempt(trans.__('Unmount'), () => actions.unmount(id, true));
    }
  }
}

/** The command that mounts the workspace elsewhere. No token is in it: the command asks for it. */
export function laptopCommand(): string {
  const quoted = PageConfig.getBaseUrl().replace(/'/g, "'\\''");
  return `wsfuse mount '${quoted}' ~/workspace`;
}

export function copyCommand(trans: TranslationBundle): void {
  Clipboard.copyToSystem(laptopCommand());
  Notification.success(trans.__('Copied. The command asks for a token; “New token…” makes one.'), {
    autoClose: 4000
  });
}

class TokenForm extends ReactWidget {
  constructor(private readonly _trans: TranslationBundle) {
    super();
  }

  getValue(): { paths: string[]; rights: string[]; expires: number; label: string } {
    const value = (name: string) =>
      this.node.querySelector<HTMLInputElement>(`[name=${name}]`)?.value.trim() ?? '';
    return {
      paths: value('path') ? [value('path')] : [],
      rights: value('rights') === 'write' ? ['read', 'write'] : ['read'],
      expires: 3600 * Number(value('hours') || 24),
      label: value('label')
    };
  }

  protected render(): JSX.Element {
    const trans = this._trans;
    return (
      <div className="jp-wsfuse-form">
        <label>
          {trans.__('Folder or file that it opens (empty: all)')}
          <input name="path" type="text" className="jp-wsfuse-input" />
        </label>
        <label>
          {trans.__('Allows')}
          <select name="rights" defaultValue="read">
            <option value="read">{trans.__('reading')}</option>
            <option value="write">{trans.__('reading and writing')}</option>
          </select>
        </label>
        <label>
          {trans.__('Hours')}
          <input name="hours" type="number" min={1} defaultValue={24} className="jp-wsfuse-input" />
        </label>
        <label>
          {trans.__('What it is for')}
          <input name="label" type="text" maxLength={100} className="jp-wsfuse-input" />
        </label>
      </div>
    );
  }

}

export async function askToken(actions: Actions, trans: TranslationBundle): Promise<void> {
  const { value, button } = await showDialog({
    title: trans.__('New scoped token'),
    body: new TokenForm(trans),
    buttons: [Dialog.cancelButton(), Dialog.okButton({ label: trans.__('Make') })]
  });
  if (!button.accept || !value) {
    return;
  }
  let token = '';
  const made = await attempt(trans.__('New token'), async () => {
    token = (await actions.token(value)).token;
  });
  if (made) {
    const shown = await showDialog({
      title: trans.__('The token'),
      body: ReactWidget.create(
        <div>
          <p>{trans.__('It is shown this once. Whoever has it can do what it allows.')}</p>
          <code className="jp-wsfuse-token">{token}</code>
        </div>
      ),
      buttons: [Dialog.okButton({ label: trans.__('Copy and close') })]
    });
    if (shown.button.accept) {
      Clipboard.copyToSystem(token);
    }
  }
}
