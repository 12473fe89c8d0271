// What the page shows, kept in the address: a link, a reload and the back button bring it again.

const NAMES = ["view", "text", "prompt", "from", "span", "tab", "at", "doc", "page", "step"];
const MAX_ADDRESS = 30_000;

export const state = {};

export function readAddress() {
  const found = new URLSearchParams(location.hash.slice(1));
  for (const name of NAMES) state[name] = found.has(name) ? found.get(name) : null;
  if (!/^\d{1,15}$/.test(state.from ?? "")) state.from = null; // addresses come from anywhere
  return state;
}

// Change some of it; `isNew` makes a place that the back button returns to. Texts too long for an address are left out of it.
export function change(values, isNew = false) {
  Object.assign(state, values);
  const address = new URLSearchParams();
  for (const name of NAMES) if (state[name] !== null && state[name] !== undefined) address.set(name, state[name]);
  let hash = `#${address}`;
  state.isWhole = hash.length <= MAX_ADDRESS;
  if (!state.isWhole) {
    for (const name of ["text", "prompt", "from", "span", "at"]) address.delete(name);
    hash = `#${address}`;
  }
  if (hash === location.hash) return;
  history[isNew ? "pushState" : "replaceState"](null, "", hash);
}
