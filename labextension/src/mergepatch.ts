/** RFC 7396. */

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

function isObject(value: unknown): value is { [name: string]: Json } {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * `target` with `patch` applied. What the patch does not touch is the same object as before, so that whoever compares
 * by identity sees what has changed.
 */
export function mergePatch(target: Json | undefined, patch: Json): Json {
  if (!isObject(patch)) {
    return patch;
  }
  const result: { [name: string]: Json } = Object.create(null);
  if (isObject(target)) {
    for (const name of Object.keys(target)) {
      result[name] = target[name];
    }
  }
  for (const name of Object.keys(patch)) {
    if (patch[name] === null) {
      delete result[name];
    } else {
      result[name] = mergePatch(result[name], patch[name]);
    }
  }
  return result;
}
