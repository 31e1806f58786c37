declare module '*.svg' {
  const source: string;
  export default source;
}

declare function require(name: "../package.json"): { version: string };
