// Speak into the microphone, and see and hear the character say it.

import { ask, character, Problem } from "/api.js";

const NUMBERS_MILLISECONDS = 1000;
const GATHERING_MILLISECONDS = 2000;

const live = document.getElementById("live");
live.innerHTML = `
  <h2>Speak live</h2>
  <video id="peer" playsinline autoplay hidden></video>
  <div class="buttons"><button id="microphone" type="button">Start the microphone</button></div>
  <small id="hint">The character says what you say, about a second later. Wear headphones, or it hears itself.</small>
  <dl class="numbers" id="peer-numbers" hidden>
    <div><dt>Round trip</dt><dd id="round-trip">–</dd></div>
    <div><dt>Frames late</dt><dd id="peer-late">–</dd></div>
    <div><dt>Bitrate</dt><dd id="bitrate">–</dd></div>
    <div><dt>State</dt><dd id="peer-state">–</dd></div>
  </dl>
  <p id="peer-message" role="alert" hidden></p>`;

const $ = (id) => document.getElementById(id);

let call = null;

function say(text) {
  $("peer-message").textContent = text ?? "";
  $("peer-message").hidden = !text;
}

function shown(is) {
  $("peer").hidden = $("peer-numbers").hidden = !is;
  $("hint").hidden = is;
  $("microphone").textContent = is ? "Stop the microphone" : "Start the microphone";
}

async function microphone() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem("The browser gives no microphone to this page: open it by https, or on the server's own machine.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    throw new Problem(error.name === "NotFoundError" ? "There is no microphone." : "The microphone may not be used.");
  }
}

// Once all of the browser's own addresses are known, or nearly: the server takes them in the offer alone.
function gathered(peer) {
  return new Promise((done) => {
    const look = () => peer.iceGatheringState === "complete" && done();
    peer.addEventListener("icegatheringstatechange", look);
    setTimeout(done, GATHERING_MILLISECONDS);
    look();
  });
}

async function start() {
  const mine = (call = { peer: new RTCPeerConnection(), bytes: 0, at: 0 });
  const { peer } = mine;
  say(null);
  $("microphone").disabled = true;
  try {
    mine.sound = await microphone();
    for (const track of mine.sound.getTracks()) peer.addTrack(track, mine.sound);
    peer.addTransceiver("video", { direction: "recvonly" });
    const stream = new MediaStream();
    peer.addEventListener("track", (event) => stream.addTrack(event.track));
    peer.addEventListener("connectionstatechange", () => {
      if (call === mine && ["failed", "closed"].includes(peer.connectionState)) ended();
    });
    await peer.setLocalDescription(await peer.createOffer());
    await gathered(peer);
    const { type, sdp } = peer.localDescription;
    const answer = await ask(`/v1/characters/${encodeURIComponent(character())}/offer`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ type, sdp }),
    });
    const told = await answer.json();
    mine.talk = told.talk;
    await peer.setRemoteDescription({ type: told.type, sdp: told.sdp });
    $("peer").srcObject = stream;
    shown(true);
    $("peer").play().catch(() => {});
    mine.timer = setInterval(() => showNumbers(mine).catch(() => call === mine && ended()), NUMBERS_MILLISECONDS);
  } catch (error) {
    stop();
    say(error instanceof Problem ? error.message : `The call failed: ${error.message}`);
  } finally {
    $("microphone").disabled = false;
  }
}

function stop() {
  const mine = call;
  call = null;
  if (!mine) return;
  clearInterval(mine.timer);
  mine.peer.close();
  for (const track of mine.sound?.getTracks() ?? []) track.stop();
  if (mine.talk) ask(`/v1/talks/${mine.talk}`, { method: "DELETE", keepalive: true }).catch(() => {});
  $("peer").srcObject = null;
  shown(false);
}

function ended() {
  stop();
  say("The call has ended.");
}

async function showNumbers(mine) {
  const stats = [...(await mine.peer.getStats()).values()];
  const pair = stats.find((each) => each.type === "candidate-pair" && each.nominated);
  if (pair?.currentRoundTripTime !== undefined) {
    $("round-trip").textContent = `${Math.round(1000 * pair.currentRoundTripTime)}\u202fms`;
  }
  const bytes = stats.filter((each) => each.type === "inbound-rtp").reduce((sum, each) => sum + each.bytesReceived, 0);
  const now = performance.now();
  if (mine.at) $("bitrate").textContent = `${Math.round((8 * (bytes - mine.bytes)) / (now - mine.at))}\u202fkbit/s`;
  Object.assign(mine, { bytes, at: now });
  const talk = await (await ask(`/v1/talks/${mine.talk}`)).json();
  $("peer-late").textContent = talk.late;
  $("peer-state").textContent = talk.speaking ? "speaks" : "listens";
}

$("peer").addEventListener("resize", () => {
  $("peer").style.aspectRatio = `${$("peer").videoWidth} / ${$("peer").videoHeight}`;
});
$("microphone").addEventListener("click", () => (call ? stop() : start()));
addEventListener("pagehide", stop);
