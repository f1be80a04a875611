// Requests to the service, and its errors as one sentence.

const TOKEN = "presto-token";

export class ServiceError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
}

async function send(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "The service does not answer. Check that presto serve runs.");
  }
  if (response.ok) return response;
  let message = `The service answered with status ${response.status}.`;
  try {
    const { what, fix } = (await response.json()).error;
    message = `${what[0].toUpperCase()}${what.slice(1)}. ${fix[0].toUpperCase()}${fix.slice(1)}.`;
  } catch { /* an answer that is not the service's own */ }
  throw new ServiceError(response.status, message);
}

export async function listModels() {
  return (await send("/v1/models")).json();
}

export async function generate(settings, signal) {
  const body = JSON.stringify(settings);
  return readClip(await send("/v1/generate", { method: "POST", body, signal, headers: { "Content-Type": "application/json" } }));
}

export async function edit(wav, settings, signal) {
  const form = new FormData();
  form.append("audio", wav, "clip.wav");
  form.append("settings", JSON.stringify(settings));
  return readClip(await send("/v1/edit", { method: "POST", body: form, signal }));
}

async function readClip(response) {
  return { about: JSON.parse(response.headers.get("X-Presto-Clip")), wav: await response.blob() };
}
