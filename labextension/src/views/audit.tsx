/** Who did what, as it happens. */
import * as React from 'react';

import { bytes, clock, count, visibleRows } from '../format';
import { IEntry } from '../state';
import { Button, IViewProps, Message } from './common';

/** Pixels; style/base.css has the same. */
const ROW = 52;

export function AuditView(props: IViewProps): JSX.Element {
  const { model, trans, run, actions } = props;
  const [proof, tell] = React.useState('');
  if (model.hello && !model.hello.may.audit) {
    return (
      <Message>
        {trans.__('The log is about all users here: reading it takes the rights to execute and write.')}
      </Message>
    );
  }
  const { filter } = model;
  const set = (name: string, value: string) => {
    const changed = { ...filter };
    if (value) {
      changed[name] = value;
    } else {
      delete changed[name];
    }
    model.filter = changed;
  };
  const verify = async () => {
    const { proofs } = await actions.verify();
    const wrong = proofs.filter(each => each.fault);
    tell(
      wrong.length
        ? trans.__('NOT as it was written: %1', wrong.map(each => each.fault.text).join('; '))
        : trans.__('%1 logs are as they were written, and nothing is missing.', proofs.length)
    );
  };
  const failed = model.state?.audit?.failed;
  return (
    <div className="jp-wsfuse-audit">
      <div className="jp-wsfuse-actions">
        <Text label={trans.__('Path')} value={filter.path ?? ''} set={value => set('path', value)} />
        <Text
          label={trans.__('Operation')}
          value={filter.operation ?? ''}
          set={value => set('operation', value)}
        />
        <label>
          <input
            type="checkbox"
            checked={filter.denied === 'true'}
            onChange={event => set('denied', event.target.checked ? 'true' : '')}
          />
          {trans.__('denied only')}
        </label>
        <Button label={trans.__('Verify')} onClick={() => run(trans.__('Verify'), verify)} />
      </div>
      {proof && <Message>{proof}</Message>}
      {failed && <Message kind="problem">{trans.__('The log cannot be written: %1', failed)}</Message>}
      <div className="jp-wsfuse-muted" role="status">
        {trans.__('%1 shown', count(model.entries.length))}
        {!!model.missed && ` · ${trans.__('%1 came too fast to be shown', count(model.missed))}`}
      </div>
      <Entries {...props} />
    </div>
  );
}

/** A text that counts when it is complete: each change of the filter searches the log. */
function Text(props: { label: string; value: string; set(value: string): void }): JSX.Element {
  const [text, edit] = React.useState(props.value);
  const done = () => {
    if (text !== props.value) {
      props.set(text);
    }
  };
  return (
    <input
      type="text"
      className="jp-wsfuse-input"
      placeholder={props.label}
      aria-label={props.label}
      value={text}
      onChange={event => edit(event.target.value)}
      onBlur={done}
      onKeyDown={event => {
        if (event.key === 'Enter') {
          done();
        }
      }}
    />
  );
}

/** The newest first. Only what is in sight is drawn. */
function Entries(props: IViewProps): JSX.Element {
  const { model, trans } = props;
  const box = React.useRef<HTMLDivElement>(null);
  const [place, scrolled] = React.useState({ top: 0, height: 600 });
  const { entries } = model;
  const look = () => {
    if (box.current) {
      scrolled({ top: box.current.scrollTop, height: box.current.clientHeight || 600 });
    }
  };
  React.useEffect(look, []);
  if (entries.length === 0) {
    return <Message>{trans.__('Nothing was recorded that matches.')}</Message>;
  }
  const [first, last] = visibleRows(place.top, place.height, ROW, entries.length);
  const rows = [];
  for (let row = first; row < last; row++) {
    const entry = entries[entries.length - 1 - row];
    rows.push(
      <div
        key={`${entry.tenant}/${entry.stream}/${entry.seq}`}
        className="jp-wsfuse-row"
        role="listitem"
        aria-setsize={entries.length}
        aria-posinset={row + 1}
        style={{ top: row * ROW }}
      >
        <Entry entry={entry} {...props} />
      </div>
    );
  }
  return (
    <div
      ref={box}
      className="jp-wsfuse-rows"
      tabIndex={0}
      role="region"
      aria-label={trans.__('Entries')}
      onScroll={look}
    >
      <div role="list" style={{ height: entries.length * ROW }}>
        {rows}
      </div>
    </div>
  );
}

function Entry(props: IViewProps & { entry: IEntry }): JSX.Element {
  const { entry, trans } = props;
  const denied = entry.success === false;
  const rule = entry.rule?.replace(/^.*?rule \d+: /, ''); // whose it is, and its number, are in the title
  const why = rule
    ? trans.__('rule: %1', rule)
    : denied
      ? [entry.errno, entry.message].filter(Boolean).join(': ')
      : entry.bytes
        ? bytes(entry.bytes)
        : (entry.client ?? '');
  const times = (entry.count ?? 1) > 1 ? ` × ${count(entry.count)}` : '';
  return (
    <>
      <div className="jp-wsfuse-line">
        <span className="jp-wsfuse-muted">{clock(entry.time)}</span> {entry.operation}
        {times}
        {denied && <strong> {entry.errno ?? trans.__('failed')}</strong>}
      </div>
      <div className="jp-wsfuse-line">
        {entry.path ? (
          <button
            type="button"
            className="jp-wsfuse-link"
            title={entry.path}
            onClick={() => props.open(entry.path!)}
          >
            {entry.path}
          </button>
        ) : (
          <span className="jp-wsfuse-muted">{entry.client}</span>
        )}
      </div>
      <div className="jp-wsfuse-line jp-wsfuse-muted" data-denied={denied} title={entry.rule ?? why}>
        {why}
      </div>
    </>
  );
}
