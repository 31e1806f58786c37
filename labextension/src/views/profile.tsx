/** What is done, how often, and how long it takes. */
import * as React from 'react';

import { bytes, clock, count, duration, percent } from '../format';
import { IOperation } from '../state';
import { Button, Chart, IViewProps, Message } from './common';

type Column = 'name' | keyof IOperation;

export function ProfileView(props: IViewProps): JSX.Element {
  const { model, trans, actions, run } = props;
  const [chosen, choose] = React.useState('server');
  const [sorted, sort] = React.useState<{ by: Column; down: boolean }>({ by: 'count', down: true });
  const profile = model.state?.profile;
  if (!profile) {
    return <Message>{trans.__('Asking the server…')}</Message>;
  }
  const scopes = Object.keys(profile);
  const scope = scopes.includes(chosen) ? chosen : scopes[0];
  if (scope === undefined) {
    return <Message>{trans.__('Nothing was done yet. Figures come with the first mount.')}</Message>;
  }
  const found = profile[scope];
  const points = model.points(scope);
  const last = points[points.length - 1];
  const columns: [Column, string, (operation: IOperation) => string][] = [
    ['count', trans.__('count'), operation => count(operation.count)],
    ['mean_us', trans.__('mean'), operation => duration(operation.mean_us)],
    ['p50_us', 'p50', operation => duration(operation.p50_us)],
    ['p95_us', 'p95', operation => duration(operation.p95_us)],
    ['p99_us', 'p99', operation => duration(operation.p99_us)],
    ['max_us', trans.__('max'), operation => duration(operation.max_us)],
    ['bytes', trans.__('bytes'), operation => bytes(operation.bytes)],
    ['hit_rate', trans.__('hits'), operation => percent(operation.hit_rate)]
  ];
  const rows = Object.entries(found.operations ?? {}).sort(([a, x], [b, y]) => {
    const order =
      sorted.by === 'name'
        ? a.localeCompare(b)
        : (x[sorted.by] ?? -1) - (y[sorted.by] ?? -1) || b.localeCompare(a);
    return sorted.down ? -order : order;
  });
  const header = (column: Column, label: string) => (
    <th
      key={column}
      scope="col"
      aria-sort={sorted.by === column ? (sorted.down ? 'descending' : 'ascending') : 'none'}
    >
      <button
        type="button"
        onClick={() => sort({ by: column, down: sorted.by === column ? !sorted.down : column !== 'name' })}
      >
        {label}
      </button>
    </th>
  );
  const save = () => {
    const text = JSON.stringify({ scope, time: Date.now() / 1000, ...found }, null, 1);
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
    link.download = `wsfuse-profile-${scope.replace(/\W+/g, '-')}.json`;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  return (
    <>
      <div className="jp-wsfuse-actions">
        <select
          aria-label={trans.__('Whose figures')}
          value={scope}
          onChange={event => choose(event.target.value)}
        >
          {scopes.map(name => (
            <option key={name} value={name}>
              {name === 'server' ? trans.__('server') : (model.state?.mounts?.[name]?.path ?? name)}
            </option>
          ))}
        </select>
        <Button
          label={trans.__('Reset')}
          disabled={!model.hello?.may.act || scope.startsWith('server ')}
          onClick={() => run(trans.__('Reset'), () => actions.resetProfile(scope))}
        />
        <Button label={trans.__('Export')} onClick={save} />
      </div>
      <div className="jp-wsfuse-caption">{trans.__('%1 operations a second', count(last?.rate ?? 0))}</div>
      <Chart points={points} value={point => point.rate} label={trans.__('Operations a second')} />
      <div className="jp-wsfuse-caption">{trans.__('%1 each', duration(last?.latency ?? 0))}</div>
      <Chart points={points} value={point => point.latency} label={trans.__('Mean latency')} />
      <div className="jp-wsfuse-table" tabIndex={0} role="region" aria-label={trans.__('Operations')}>
        <table>
          <thead>
            <tr>
              {header('name', trans.__('operation'))}
              {columns.map(([column, label]) => header(column, label))}
            </tr>
          </thead>
          <tbody>
            {rows.map(([name, operation]) => (
              <tr key={name}>
                <th scope="row">{name}</th>
                {columns.map(([column, , text]) => (
                  <td key={column}>{text(operation)}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {!!found.slow?.length && (
        <>
          <h3>{trans.__('Slow operations')}</h3>
          <ul className="jp-wsfuse-list">
            {found.slow.map((slow, at) => (
              <li key={at}>
                {`${duration(slow.duration_us)} · ${slow.operation} · ${clock(slow.time)}`}
                <div className="jp-wsfuse-muted">{slow.path}</div>
              </li>
            ))}
          </ul>
        </>
      )}
    </>
  );
}
