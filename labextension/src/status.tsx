/** The item in the status bar: how many mounts there are, and whether one is in trouble. */
import { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { PanelModel } from './model';

export class StatusItem extends ReactWidget {
  constructor(
    private readonly _model: PanelModel,
    private readonly _trans: TranslationBundle,
    private readonly _open: () => void
  ) {
    super();
    this.addClass('jp-wsfuse-status');
    _model.changed.connect(this.update, this);
  }

  dispose(): void {
    this._model.changed.disconnect(this.update, this);
    super.dispose();
  }

  protected render(): JSX.Element | null {
    const mounts = Object.values(this._model.state?.mounts ?? {});
    if (mounts.length === 0) {
      return null;
    }
    const calm = ['connected', 'parked', 'mounting', 'unmounting'];
    const troubled = mounts.filter(mount => !calm.includes(mount.state)).length;
    const trans = this._trans;
    const all = trans._n('%1 mount', '%1 mounts', mounts.length);
    const text = troubled ? trans.__('%1, %2 in trouble', all, troubled) : all;
    return (
      <button type="button" title={trans.__('Show the workspace’s mounts')} onClick={this._open}>
        <span
          className="jp-wsfuse-dot"
          data-state={troubled ? 'reconnecting' : 'connected'}
          aria-hidden="true"
        />
        {text}
      </button>
    );
  }
}
