/** What is used of what is allowed. */
import * as React from 'react';

import { bytes, count } from '../format';
import { ICounter } from '../state';
import { Bar, IViewProps, Message } from './common';

function amount(value: number | undefined, unit: string | undefined): string {
  return unit?.startsWith('bytes') ? bytes(value) : count(value);
}

export function LimitsView({ model, trans }: IViewProps): JSX.Element {
  const limits = model.state?.limits;
  if (!limits) {
    return <Message>{trans.__('Asking the server…')}</Message>;
  }
  const tenants = Object.entries(limits);
  if (tenants.length === 0) {
    return <Message>{trans.__('Nobody has used the workspace yet.')}</Message>;
  }
  return (
    <>
      {tenants.map(([tenant, { counters = {}, throttled = {} }]) => (
        <section key={tenant} aria-label={tenant}>
          <h3>{tenant}</h3>
          {Object.keys(counters).length === 0 && (
            <Message>{trans.__('No limits are set (c.WsFuse.limits).')}</Message>
          )}
          <ul className="jp-wsfuse-list">
            {Object.entries(counters).map(([name, counter]) => (
              <Counter key={name} name={name} counter={counter} trans={trans} />
            ))}
          </ul>
          {Object.entries(throttled).map(([client, { counter, until_s }]) => (
            <Message key={client} kind="problem">
              {counter
                ? trans.__('%1 is held back by %2, for up to %3 s', client, counter, (until_s ?? 0).toFixed(1))
                : trans.__('%1 was held back a moment ago', client)}
            </Message>
          ))}
        </section>
      ))}
    </>
  );
}

function Counter(props: {
  name: string;
  counter: ICounter;
  trans: IViewProps['trans'];
}): JSX.Element {
  const { name, counter, trans } = props;
  const used = amount(counter.used ?? 0, counter.unit);
  const text =
    counter.limit === undefined
      ? trans.__('%1, not limited', used)
      : trans.__('%1 of %2 %3', used, amount(counter.limit, counter.unit), counter.unit ?? '');
  return (
    <li>
      <div className="jp-wsfuse-name">{name}</div>
      {counter.limit !== undefined && (
        <Bar part={(counter.used ?? 0) / (counter.limit || 1)} label={`${name}: ${text}`} />
      )}
      <div className="jp-wsfuse-muted">{text}</div>
      {(!!counter.delayed || !!counter.refused) && (
        <div className="jp-wsfuse-muted">
          {trans.__('%1 delayed, %2 refused', count(counter.delayed ?? 0), count(counter.refused ?? 0))}
        </div>
      )}
    </li>
  );
}
