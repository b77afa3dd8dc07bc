// Pick a character and a sound, and see it said.

import { ask, character, Problem } from "/api.js";
import { Player } from "/player.js";

const $ = (id) => document.getElementById(id);
const STATUS_MILLISECONDS = 1000;

const known = new Map();
let running = null;
let talk = null;
let saved = null;
let poster = null;

function say(text) {
  $("message").textContent = text ?? "";
  $("message").hidden = !text;
}

function show(id, value, unit = "") {
  $(id).textContent = value === null ? "–" : `${value}${unit && `\u202f${unit}`}`;
}

async function listCharacters() {
  const { characters, broken } = await (await ask("/v1/characters")).json();
  const before = character();
  known.clear();
  for (const each of characters) known.set(each.id, each);
  $("character").replaceChildren(
    ...characters.map((each) => new Option(each.id, each.id)),
    ...broken.map((each) => {
      const option = new Option(`${each.id} (${each.error})`, each.id);
      option.disabled = true;
      return option;
    }),
  );
  if (known.has(before)) $("character").value = before;
  $("access").hidden = $("token").value === "";
  say(characters.length ? null : "The server has no character that can be shown.");
  await showCharacter();
}

async function showCharacter() {
  const picked = known.get(character());
  if (!picked) return;
  const seconds = (picked.frames / picked.fps).toFixed(1);
  $("facts").textContent = `${picked.width} × ${picked.height}, ${+picked.fps.toFixed(2)} fps, filmed for ${seconds} s`;
  document.querySelector(".screen").style.aspectRatio = `${picked.width} / ${picked.height}`;
  const picture = await (await ask(`/v1/characters/${encodeURIComponent(picked.id)}/picture`)).blob();
  if (poster) URL.revokeObjectURL(poster);
  poster = URL.createObjectURL(picture);
  if (!running) showPoster();
  $("video").poster = poster;
}

function showPoster() {
  $("video").removeAttribute("src");
  $("video").load();
}

function firstPicture(video, begun) {
  const told = () => show("first", Math.round(performance.now() - begun), "ms");
  if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(told);
  else video.addEventListener("playing", told, { once: true });
}

async function speak() {
  const file = $("sound").files[0];
  if (!file) {
    say("Choose a sound file first.");
    $("sound").focus();
    return;
  }
  stop();
  say(null);
  for (const id of ["first", "speed", "late"]) show(id, null);
  const begun = performance.now();
  const control = (running = new AbortController());
  const player = new Player($("video"));
  busy(true);
  firstPicture($("video"), begun);
  try {
    const query = $("realtime").checked ? "?realtime=1" : "";
    const path = `/v1/characters/${encodeURIComponent(character())}/video${query}`;
    const response = await ask(path, { method: "POST", body: file, signal: control.signal });
    talk = Number(response.headers.get("gpupipe-talk"));
    if (!$("realtime").checked) show("late", 0);
    const came = performance.now();
    await player.play(response, () => {
      const seconds = player.seconds;
      if (seconds) show("speed", (seconds / ((performance.now() - came) / 1000)).toFixed(1), "×");
    });
    keep(player.file);
  } catch (error) {
    if (running === control && error.name !== "AbortError") {
      say(error instanceof Problem ? error.message : "The answer broke off; the server's log says why.");
      if (!player.seconds) showPoster();
    }
  } finally {
    if (running === control) {
      running = talk = null;
      busy(false);
    }
  }
}

function stop() {
  running?.abort();
  running = talk = null;
  $("video").pause();
  busy(false);
}

function busy(is) {
  $("stop").hidden = !is;
  if (is) $("save").hidden = true;
}

function keep(file) {
  if (saved) URL.revokeObjectURL(saved);
  saved = URL.createObjectURL(file);
  $("save").href = saved;
  $("save").download = `${character()}.mp4`;
  $("save").hidden = false;
}

async function showStatus() {
  const pill = $("server");
  try {
    const status = await (await ask("/v1/status")).json();
    show("load", Math.round(100 * status.load), "%");
    const talks = `${status.sessions} ${status.sessions === 1 ? "talk" : "talks"}`;
    pill.textContent = status.closing ? "shutting down" : `${talks} on ${status.devices.map((name) => name.split(" ")[0]).join(", ")}`;
    pill.className = `pill ${status.closing ? "bad" : status.load > 0.8 ? "warm" : "good"}`;
    $("version").textContent = `gpupipe ${status.version}`;
    const mine = status.talks.find((each) => each.number === talk);
    if (mine) show("late", mine.late);
    if (!known.size) await listCharacters();
  } catch (error) {
    pill.textContent = error instanceof Problem && !$("access").hidden ? "a token is wanted" : "no answer";
    pill.className = "pill bad";
  }
}

async function watch() {
  for (;;) {
    const asksForToken = !$("access").hidden && !$("token").value;
    if (!document.hidden && !asksForToken) await showStatus();
    await new Promise((done) => setTimeout(done, STATUS_MILLISECONDS));
  }
}

function drops() {
  const shade = (is) => ($("drop").hidden = !is);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    shade(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? shade(false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    shade(false);
    if (event.dataTransfer.files.length) $("sound").files = event.dataTransfer.files;
  });
}

const listed = () => listCharacters().catch((error) => say(error.message));
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
$("stop").addEventListener("click", stop);
$("character").addEventListener("change", () => showCharacter().catch((error) => say(error.message)));
$("token").addEventListener("change", listed);
drops();
listed();
watch();
