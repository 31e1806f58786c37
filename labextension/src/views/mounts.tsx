/** Who has the workspace mounted, and how that goes. */
import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { bytes, count, percent } from '../format';
import { IMount, MountState } from '../state';
import { Bar, Button, IViewProps, Message } from './common';

export interface IMountsProps extends IViewProps {
  askMount(): void;
  askUnmount(id: string, mount: IMount): void;
  copyCommand(): void;
  token(): void;
}

export function MountsView(props: IMountsProps): JSX.Element {
  const { model, trans } = props;
  const mounts = Object.entries(model.state?.mounts ?? {});
  const fuse = model.hello?.fuse ?? {};
  const may = model.hello?.may.act ?? false;
  return (
    <>
      <div className="jp-wsfuse-actions">
        <Button
          label={trans.__('Mount…')}
          title={trans.__('Mount the workspace on the server’s machine')}
          disabled={!may || fuse.available === false}
          onClick={props.askMount}
        />
        <Button
          label={trans.__('Copy command')}
          title={trans.__('The command that mounts this workspace on another machine')}
          onClick={props.copyCommand}
        />
        <Button label={trans.__('New token…')} disabled={!may} onClick={props.token} />
      </div>
      {fuse.available === false && (
        <Message kind="problem">
          {trans.__('The server’s machine cannot mount: %1 %2', fuse.reason ?? '', fuse.advice ?? '')}
        </Message>
      )}
      {model.hello && !may && (
        <Message>
          {trans.__('You may look, but not mount or unmount: the server does not let you execute and write.')}
        </Message>
      )}
      {!model.state ? (
        <Message>{trans.__('Asking the server…')}</Message>
      ) : mounts.length === 0 ? (
        <Empty trans={trans} />
      ) : (
        <ul className="jp-wsfuse-list">
          {mounts.map(([id, mount]) => (
            <Item key={id} id={id} mount={mount} may={may} {...props} />
          ))}
        </ul>
      )}
      {!!model.state?.engine?.more_mounts && (
        <Message>{trans.__('%1 more are not shown.', model.state.engine.more_mounts)}</Message>
      )}
    </>
  );
}

function Empty({ trans }: { trans: TranslationBundle }): JSX.Element {
  return (
    <Message>
      {trans.__('Nobody has this workspace mounted. In a notebook, on any machine:')}
      <code>%load_ext jupyter_wsfuse</code>
      <code>%wsfuse mount</code>
      {trans.__('In a terminal:')}
      <code>wsfuse mount URL DIR</code>
    </Message>
  );
}

function stateText(state: MountState, trans: TranslationBundle): string {
  switch (state) {
    case 'mounting':
      return trans.__('mounting');
    case 'connected':
      return trans.__('connected');
    case 'reconnecting':
      return trans.__('reconnecting');
    case 'parked':
      return trans.__('parked: idle, connects again at its next use');
    case 'degraded':
      return trans.__('degraded');
    case 'disconnected':
      return trans.__('disconnected');
    case 'failed':
      return trans.__('failed');
    case 'unmounting':
      return trans.__('unmounting');
    default:
      return state;
  }
}

function Item(props: IMountsProps & { id: string; mount: IMount; may: boolean }): JSX.Element {
  const { id, mount, trans, may, run, actions } = props;
  const name = mount.path ?? mount.client ?? id;
  const rescue = Object.values(mount.rescue ?? {});
  const managed = may && !!mount.managed;
  return (
    <li className="jp-wsfuse-item" data-mount={id}>
      <div className="jp-wsfuse-name">
        <span className="jp-wsfuse-dot" data-state={mount.state} aria-hidden="true" />
        {name}
      </div>
      <div role="status">
        {stateText(mount.state, trans)}
        {mount.read_only && ` · ${trans.__('read only')}`}
        {mount.transport && ` · ${mount.transport === 'direct' ? trans.__('direct') : trans.__('through Jupyter')}`}
      </div>
      {mount.state === 'reconnecting' && (
        <>
          <div>
            {trans.__(
              '%1 operations held, %2 s of %3 s',
              mount.held ?? 0,
              Math.round(mount.waited_s ?? 0),
              Math.round(mount.deadline_s ?? 0)
            )}
          </div>
          <Bar
            part={(mount.waited_s ?? 0) / (mount.deadline_s || 1)}
            label={trans.__('Time until held operations fail')}
          />
        </>
      )}
      {mount.reason && <Message kind="problem">{mount.reason}</Message>}
      <dl className="jp-wsfuse-facts">
        {mount.host && <Fact name={trans.__('on')} value={mount.host} />}
        {mount.tenant && <Fact name={trans.__('tenant')} value={mount.tenant} />}
        {mount.rtt_ms !== undefined && (
          <Fact name={trans.__('round trip')} value={`${mount.rtt_ms.toFixed(1)} ms`} />
        )}
        {mount.hit_rate !== undefined && (
          <Fact name={trans.__('from caches')} value={percent(mount.hit_rate)} />
        )}
        {mount.operations !== undefined && (
          <Fact name={trans.__('operations')} value={count(mount.operations)} />
        )}
        <Fact name={trans.__('unsynced')} value={bytes(mount.unsynced ?? 0)} />
      </dl>
      {rescue.map((entry, at) => (
        <Message key={at} kind="problem">
          {trans.__('%1 could not be written: %2 (%3)', entry.path, entry.reason, bytes(entry.bytes))}
        </Message>
      ))}
      <div className="jp-wsfuse-actions">
        {mount.folder !== undefined && (
          <Button label={trans.__('Open')} onClick={() => props.open(mount.folder!)} />
        )}
        {managed && (
          <Button
            label={trans.__('Sync')}
            title={trans.__('Wait until everything is on the server')}
            onClick={() => run(trans.__('Sync'), () => actions.sync(id))}
          />
        )}
        {managed && (
          <Button label={trans.__('Unmount')} onClick={() => props.askUnmount(id, mount)} />
        )}
      </div>
    </li>
  );
}

function Fact(props: { name: string; value: string }): JSX.Element {
  return (
    <div>
      <dt>{props.name}</dt>
      <dd>{props.value}</dd>
    </div>
  );
}
