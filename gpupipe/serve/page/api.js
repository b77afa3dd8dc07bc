// What every part of the page asks the server by.

const TOKEN = "gpupipe-token";
const field = document.getElementById("token");
field.value = sessionStorage.getItem(TOKEN) ?? "";
field.addEventListener("change", () => sessionStorage.setItem(TOKEN, field.value.trim()));

// What went wrong, in one line that is shown.
export class Problem extends Error {}

// The headers that every request wants.
export function headers() {
  const token = field.value.trim();
  return token ? { authorization: `Bearer ${token}` } : {};
}

// Ask the server; a Problem unless it answers well.
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer.");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    document.getElementById("access").hidden = false;
    throw new Problem(field.value ? "That is none of the server's tokens." : "The server wants one of its tokens.");
  }
  const told = await response.json().catch(() => ({}));
  throw new Problem(sentence(told.error ?? `The server says ${response.status}.`));
}

// The character that is picked.
export function character() {
  return document.getElementById("character").value;
}

function sentence(text) {
  const said = text.replace(/^body: /, "the sound ");
  return said.charAt(0).toUpperCase() + said.slice(1);
}
