/** Numbers for people. */

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

export function bytes(value: number | undefined): string {
  if (value === undefined) {
    return '–';
  }
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

/** A duration given in microseconds. */
export function duration(us: number | undefined): string {
  if (us === undefined) {
    return '–';
  }
  if (us < 1000) {
    return `${Math.round(us)} µs`;
  }
  if (us < 1_000_000) {
    return `${us < 10_000 ? (us / 1000).toFixed(1) : Math.round(us / 1000)} ms`;
  }
  return `${(us / 1_000_000).toFixed(1)} s`;
}

export function count(value: number | undefined): string {
  return value === undefined ? '–' : Math.round(value).toLocaleString('en');
}

export function percent(part: number | undefined): string {
  return part === undefined ? '–' : `${Math.round(100 * part)} %`;
}

/** A time given in seconds since the epoch, or as text. */
export function clock(time: number | string | undefined): string {
  if (time === undefined) {
    return '';
  }
  const date = typeof time === 'number' ? new Date(1000 * time) : new Date(time);
  return isNaN(date.getTime()) ? String(time) : date.toLocaleTimeString();
}

/** Rows of a list with `rows` rows of one height that are to be drawn: [first, behind the last]. */
export function visibleRows(
  scrollTop: number,
  height: number,
  rowHeight: number,
  rows: number,
  spare = 10
): [number, number] {
  const first = Math.max(0, Math.min(rows, Math.floor(scrollTop / rowHeight) - spare));
  const last = Math.min(rows, Math.ceil((scrollTop + height) / rowHeight) + spare);
  return [first, Math.max(first, last)];
}
