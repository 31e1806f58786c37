/**
 * The sidebar panel: who has this server's workspace mounted, and what to do if nobody can.
 */
import { ITranslator, TranslationBundle } from '@jupyterlab/translation';
import {
  LabIcon,
  PanelWithToolbar,
  ReactWidget,
  refreshIcon,
  SidePanel,
  ToolbarButton
} from '@jupyterlab/ui-components';
import { Message } from '@lumino/messaging';
import * as React from 'react';

import mountSvg from '../style/icons/mount.svg';
import { ISession, IStatus, PROTOCOL, StatusError } from './api';
import { StatusModel } from './model';

export const mountIcon = new LabIcon({ name: 'jupyter-wsfuse:mount', svgstr: mountSvg });

export class MountsPanel extends SidePanel {
  /** The panel owns `model`: disposing of the panel ends the poll. */
  constructor(
    private readonly _model: StatusModel,
    translator: ITranslator
  ) {
    super({ translator });
    const trans = translator.load('jupyter_wsfuse');
    this.id = 'jp-wsfuse-panel';
    this.addClass('jp-wsfuse-panel');
    this.title.icon = mountIcon;
    this.title.caption = trans.__('Workspace mounts');

    const section = new PanelWithToolbar();
    section.title.label = trans.__('Workspace mounts');
    section.toolbar.addItem(
      'refresh',
      new ToolbarButton({
        icon: refreshIcon,
        tooltip: trans.__('Refresh'),
        onClick: () => this._model.refresh()
      })
    );
    section.addWidget(new StatusView(_model, trans));
    this.addWidget(section);
  }

  dispose(): void {
    this._model.dispose();
    super.dispose();
  }

  protected onAfterAttach(msg: Message): void {
    super.onAfterAttach(msg);
    this._model.watched = this.isVisible; // a restored layout attaches the panel already open
  }

  protected onAfterShow(): void {
    this._model.watched = true;
  }

  protected onAfterHide(): void {
    this._model.watched = false;
  }
}

/** The panel's body, rendered again at every change of the model. */
class StatusView extends ReactWidget {
  constructor(
    private readonly _model: StatusModel,
    private readonly _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-wsfuse-body');
    _model.changed.connect(this.update, this);
  }

  dispose(): void {
    this._model.changed.disconnect(this.update, this);
    super.dispose();
  }

  protected render(): JSX.Element {
    const { status, error } = this._model;
    const trans = this._trans;
    if (error) {
      return <ErrorMessage error={error} trans={trans} />;
    }
    if (!status) {
      return <p className="jp-wsfuse-message">{trans.__('Asking the server…')}</p>;
    }
    if (status.protocol !== PROTOCOL) {
      return <SkewMessage status={status} trans={trans} />;
    }
    return (
      <>
        <EngineMessage status={status} trans={trans} />
        {status.sessions.length === 0 ? (
          <EmptyMessage trans={trans} />
        ) : (
          <ul className="jp-wsfuse-sessions">
            {status.sessions.map(session => (
              <SessionItem key={session.id} session={session} trans={trans} />
            ))}
          </ul>
        )}
        <p className="jp-wsfuse-muted">{trans.__('jupyter-wsfuse %1', status.version)}</p>
      </>
    );
  }
}

function EmptyMessage({ trans }: { trans: TranslationBundle }): JSX.Element {
  return (
    <>
      <p className="jp-wsfuse-message">{trans.__('Nobody has this workspace mounted.')}</p>
      <p className="jp-wsfuse-message">{trans.__('In a notebook, on any machine:')}</p>
      <p className="jp-wsfuse-message">
        <code>%load_ext jupyter_wsfuse</code>
        <br />
        <code>%wsfuse mount</code>
      </p>
      <p className="jp-wsfuse-message">{trans.__('In a terminal:')}</p>
      <p className="jp-wsfuse-message">
        <code>wsfuse mount URL DIR</code>
      </p>
    </>
  );
}

function SessionItem(props: { session: ISession; trans: TranslationBundle }): JSX.Element {
  const { session, trans } = props;
  const way = session.transport === 'direct' ? trans.__('direct') : trans.__('through Jupyter');
  const state = session.connected ? way : trans.__('waiting for the client to reconnect');
  return (
    <li className="jp-wsfuse-session">
      <div className="jp-wsfuse-session-name">
        <span className="jp-wsfuse-dot" data-connected={session.connected} />
        {session.client}
      </div>
      <div className="jp-wsfuse-muted">
        {trans.__('%1 · since %2', state, new Date(session.since * 1000).toLocaleString())}
      </div>
      <div className="jp-wsfuse-muted">
        {trans.__('%1 open files · %2 requests', session.handles, session.requests)}
      </div>
    </li>
  );
}

/** Says something only where the engine is in a state that the user should know of. */
function EngineMessage(props: { status: IStatus; trans: TranslationBundle }): JSX.Element | null {
  const { engine } = props.status;
  const { trans } = props;
  if (engine.state === 'failed') {
    return (
      <p className="jp-wsfuse-message jp-wsfuse-problem">
        {trans.__(
          'The file engine failed: %1. New mounts start it again; if it keeps failing, look at the Jupyter server’s log.',
          engine.error ?? trans.__('no reason given')
        )}
      </p>
    );
  }
  if (engine.state === 'starting') {
    return <p className="jp-wsfuse-message">{trans.__('The file engine is starting…')}</p>;
  }
  return null;
}

function SkewMessage(props: { status: IStatus; trans: TranslationBundle }): JSX.Element {
  const { status, trans } = props;
  return (
    <p className="jp-wsfuse-message jp-wsfuse-problem">
      {trans.__(
        'This page speaks protocol %1, the server speaks %2 (jupyter-wsfuse %3). Reload the page; if this message stays, install the same version of jupyter-wsfuse for JupyterLab and for the server, and restart the server.',
        PROTOCOL,
        status.protocol,
        status.version ?? '?'
      )}
    </p>
  );
}

function ErrorMessage(props: { error: StatusError; trans: TranslationBundle }): JSX.Element {
  const { error, trans } = props;
  return (
    <>
      <p className="jp-wsfuse-message jp-wsfuse-problem">{advice(error, trans)}</p>
      <p className="jp-wsfuse-muted">{error.message}</p>
    </>
  );
}

function advice(error: StatusError, trans: TranslationBundle): string {
  switch (error.problem) {
    case 'not-installed':
      return trans.__(
        'The server side is not running. Install jupyter-wsfuse in the Jupyter server’s own environment, and restart the server; “jupyter server extension list” must show jupyter_wsfuse as OK.'
      );
    case 'forbidden':
      return trans.__(
        'You may not see the mounts of this server. Log in again, or ask its administrator.'
      );
    case 'unreachable':
      return trans.__('The server does not answer. Trying again…');
    case 'unexpected':
      return trans.__(
        'The server gave an answer that this page does not understand. Reload the page; if this stays, look at the Jupyter server’s log.'
      );
  }
}
