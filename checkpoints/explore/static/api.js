// The server's answers. An error is thrown with the server's own message.

async function failure(response) {
  try {
    return new Error((await response.json()).message ?? response.statusText);
  } catch {
    return new Error(`${response.status} ${response.statusText}`);
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is `olmo explore` still running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

const posted = (body, signal) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

export const getRun = async () => (await ask("/api/run")).json();
export const getDocument = async (query, signal) => (await ask(`/api/document?${new URLSearchParams(query)}`, { signal })).json();
export const postTrace = async (body, signal) => (await ask("/api/trace", posted(body, signal))).json();

// Events of a stream, one JSON object per line; leaving the loop, or aborting, ends the work of the server.
export async function* stream(path, body, signal) {
  const response = await ask(path, posted(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const event = JSON.parse(line);
        if (event.event === "error") throw new Error(event.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
