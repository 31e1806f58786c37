/**
 * What the feed tells, in its own words: see docs/api/feed.md. Whatever is null there may be missing here.
 */

export const VIEWS = ['mounts', 'profile', 'limits', 'audit'] as const;
export type View = (typeof VIEWS)[number];

export interface IEngine {
  state?: 'running' | 'starting' | 'stopped' | 'failed';
  pid?: number;
  restarts?: number;
  error?: string;
  more_mounts?: number;
}

export type MountState =
  | 'mounting'
  | 'connected'
  | 'reconnecting'
  | 'parked'
  | 'degraded'
  | 'disconnected'
  | 'failed'
  | 'unmounting';

export interface IRescue {
  path: string;
  reason: string;
  bytes: number;
  time?: number;
}

export interface IMount {
  state: MountState;
  reason?: string;
  path?: string;
  host?: string;
  local?: boolean;
  managed?: boolean;
  folder?: string;
  tenant?: string;
  transport?: string;
  client?: string;
  read_only?: boolean;
  since?: number;
  rtt_ms?: number;
  hit_rate?: number;
  operations?: number;
  unsynced?: number;
  rescue?: Record<string, IRescue>;
  held?: number;
  waited_s?: number;
  deadline_s?: number;
}

export interface IOperation {
  count: number;
  errors?: number;
  mean_us?: number;
  p50_us?: number;
  p95_us?: number;
  p99_us?: number;
  max_us?: number;
  bytes?: number;
  hit_rate?: number;
}

export interface ISlow {
  time: number;
  operation: string;
  path: string;
  duration_us: number;
}

export interface IProfile {
  rate?: number;
  operations?: Record<string, IOperation>;
  slow?: ISlow[];
}

export interface ICounter {
  used?: number;
  limit?: number;
  unit?: string;
  delayed?: number;
  refused?: number;
  waited_s?: number;
}

export interface ILimits {
  counters?: Record<string, ICounter>;
  throttled?: Record<string, { counter?: string; until_s?: number }>;
}

export interface IState {
  engine?: IEngine;
  mounts?: Record<string, IMount>;
  profile?: Record<string, IProfile>;
  limits?: Record<string, ILimits>;
  audit?: { entries?: number; failed?: string; streams?: number };
}

/** An entry of the audit log (docs/audit.md). What is empty is left out; `success` is missing of events. */
export interface IEntry {
  time?: string;
  seq?: number;
  stream?: number;
  tenant?: string;
  principal?: string;
  client?: string;
  operation?: string;
  path?: string;
  new_path?: string;
  success?: boolean;
  errno?: string;
  message?: string;
  rule?: string;
  bytes?: number;
  count?: number;
}

export interface IHello {
  version: string;
  may: { act?: boolean; audit?: boolean };
  fuse: { available?: boolean; reason?: string; advice?: string };
  root: string;
}
