/** What the views share. */
import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { Actions } from '../actions';
import { IPoint, PanelModel } from '../model';

export interface IViewProps {
  model: PanelModel;
  actions: Actions;
  trans: TranslationBundle;
  /** Opens a path of the file browser. */
  open(path: string): void;
  /** Runs an action; what it fails with is shown. */
  run(what: string, work: () => Promise<unknown>): void;
}

export function Message(props: {
  kind?: 'problem' | 'plain';
  children: React.ReactNode;
}): JSX.Element {
  return (
    <p
      className={`jp-wsfuse-message${props.kind === 'problem' ? ' jp-wsfuse-problem' : ''}`}
      role={props.kind === 'problem' ? 'alert' : undefined}
    >
      {props.children}
    </p>
  );
}

export function Button(props: {
  label: string;
  title?: string;
  disabled?: boolean;
  onClick(): void;
}): JSX.Element {
  return (
    <button
      type="button"
      className="jp-wsfuse-button"
      title={props.title}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      {props.label}
    </button>
  );
}

/** A part of a whole, said in words as well. */
export function Bar(props: { part: number; label: string }): JSX.Element {
  const part = Math.max(0, Math.min(1, props.part));
  return (
    <div
      className="jp-wsfuse-bar"
      role="meter"
      aria-label={props.label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={Math.round(100 * part)}
    >
      <div data-full={part >= 0.9} style={{ width: `${100 * part}%` }} />
    </div>
  );
}

const WIDTH = 240;
const HEIGHT = 48;

/** One line over time. */
export function Chart(props: {
  points: IPoint[];
  value(point: IPoint): number;
  label: string;
}): JSX.Element {
  const values = props.points.map(props.value);
  const most = Math.max(...values, 0);
  const step = WIDTH / Math.max(1, values.length - 1);
  const line = values
    .map((value, at) => {
      const y = HEIGHT - 2 - (most ? (value / most) * (HEIGHT - 6) : 0);
      return `${(at * step).toFixed(1)},${y.toFixed(1)}`;
    })
    .join(' ');
  return (
    <svg
      className="jp-wsfuse-chart"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={props.label}
    >
      <polyline points={line} />
    </svg>
  );
}
