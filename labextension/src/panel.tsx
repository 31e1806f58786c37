/** The sidebar panel: four views of one model. */
import { ITranslator, TranslationBundle } from '@jupyterlab/translation';
import { LabIcon, ReactWidget } from '@jupyterlab/ui-components';
import { Message as LuminoMessage } from '@lumino/messaging';
import * as React from 'react';

import mountSvg from '../style/icons/mount.svg';
import { PanelModel } from './model';
import { View, VIEWS } from './state';
import { AuditView } from './views/audit';
import { Button, Message } from './views/common';
import { LimitsView } from './views/limits';
import { IMountsProps, MountsView } from './views/mounts';
import { ProfileView } from './views/profile';

export const mountIcon = new LabIcon({ name: 'jupyter-wsfuse:mount', svgstr: mountSvg });

export type PanelProps = Omit<IMountsProps, 'model' | 'trans'>;

export class WorkspacePanel extends ReactWidget {
  constructor(
    private readonly _model: PanelModel,
    private readonly _props: PanelProps,
    translator: ITranslator
  ) {
    super();
    this._trans = translator.load('jupyter_wsfuse');
    this.id = 'jp-wsfuse-panel';
    this.addClass('jp-wsfuse-panel');
    this.title.icon = mountIcon;
    this.title.caption = this._trans.__('Workspace mounts');
    _model.changed.connect(this.update, this);
  }

  dispose(): void {
    this._model.changed.disconnect(this.update, this);
    super.dispose();
  }

  /** Show one of the views. */
  showView(view: View): void {
    this._view = view;
    this._see();
    this.update();
  }

  protected onAfterAttach(message: LuminoMessage): void {
    super.onAfterAttach(message);
    this._see(); // a restored layout attaches the panel already open
  }

  protected onAfterShow(): void {
    this._see();
    this.update();
  }

  protected onAfterHide(): void {
    this._see();
  }

  protected render(): JSX.Element {
    const trans = this._trans;
    const model = this._model;
    const titles: Record<View, string> = {
      mounts: trans.__('Mounts'),
      profile: trans.__('Profile'),
      limits: trans.__('Limits'),
      audit: trans.__('Audit')
    };
    const move = (event: React.KeyboardEvent) => {
      const step = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0;
      if (step) {
        const next = VIEWS[(VIEWS.indexOf(this._view) + step + VIEWS.length) % VIEWS.length];
        this.showView(next);
        event.currentTarget.querySelector<HTMLElement>(`[data-view=${next}]`)?.focus();
        event.preventDefault();
      }
    };
    const shown = { ...this._props, model, trans };
    return (
      <>
        <div
          className="jp-wsfuse-tabs"
          role="tablist"
          aria-label={trans.__('Workspace mounts')}
          onKeyDown={move}
        >
          {VIEWS.map(view => (
            <button
              key={view}
              type="button"
              role="tab"
              id={`jp-wsfuse-tab-${view}`}
              data-view={view}
              aria-selected={view === this._view}
              aria-controls="jp-wsfuse-view"
              tabIndex={view === this._view ? 0 : -1}
              onClick={() => this.showView(view)}
            >
              {titles[view]}
            </button>
          ))}
        </div>
        <div
          className="jp-wsfuse-body"
          id="jp-wsfuse-view"
          role="tabpanel"
          aria-labelledby={`jp-wsfuse-tab-${this._view}`}
        >
          <Trouble model={model} trans={trans} />
          {this._view === 'mounts' && <MountsView {...shown} />}
          {this._view === 'profile' && <ProfileView {...shown} />}
          {this._view === 'limits' && <LimitsView {...shown} />}
          {this._view === 'audit' && <AuditView {...shown} />}
        </div>
      </>
    );
  }

  private _see(): void {
    this._model.seen = this.isVisible ? this._view : null;
  }

  private readonly _trans: TranslationBundle;
  private _view: View = 'mounts';
}

/** What is wrong as a whole, and what to do about it. */
function Trouble(props: { model: PanelModel; trans: TranslationBundle }): JSX.Element | null {
  const { model, trans } = props;
  const retry = <Button label={trans.__('Try again')} onClick={() => model.retry()} />;
  switch (model.trouble) {
    case 'not-installed':
      return (
        <Message kind="problem">
          {trans.__(
            'The server side is not running. Install jupyter-wsfuse in the Jupyter server’s own environment, and restart the server; “jupyter server extension list” must show jupyter_wsfuse as OK.'
          )}
          {retry}
        </Message>
      );
    case 'forbidden':
      return (
        <Message kind="problem">
          {trans.__('You may not see the mounts of this server. Log in again, or ask its administrator.')}
          {retry}
        </Message>
      );
    case 'mismatch':
      return (
        <Message kind="problem">
          {trans.__(
            'This page (%1) and the server (%2) do not understand each other: update the older one. Reload the page; if this stays, install the same version of jupyter-wsfuse for JupyterLab and for the server, and restart the server.',
            model.version,
            model.detail || '?'
          )}
        </Message>
      );
    case 'unreachable':
      return (
        <Message kind="problem">
          {trans.__('The server does not answer. What is shown is what was known last. Trying again…')}
          {retry}
        </Message>
      );
  }
  const engine = model.state?.engine;
  if (engine?.state === 'failed') {
    return (
      <Message kind="problem">
        {trans.__(
          'The file engine failed: %1. New mounts start it again; if it keeps failing, look at the Jupyter server’s log.',
          engine.error || trans.__('no reason given')
        )}
      </Message>
    );
  }
  if (engine?.state === 'starting') {
    return <Message>{trans.__('The file engine is starting…')}</Message>;
  }
  return null;
}
