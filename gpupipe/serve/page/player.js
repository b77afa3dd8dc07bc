// Plays a video while it still comes.

const Source = window.ManagedMediaSource ?? window.MediaSource;
const KEPT_SECONDS = 10;

// A player of one answer. Made in the click that asks for it, so that the browser lets it be heard.
export class Player {
  constructor(video) {
    this.video = video;
    this.pieces = [];
    this.waiting = [];
    this.ended = false;
    if (Source) {
      this.source = new Source();
      this.opened = new Promise((done) => this.source.addEventListener("sourceopen", done, { once: true }));
      video.disableRemotePlayback = true; // or Safari's ManagedMediaSource never opens
      video.src = URL.createObjectURL(this.source);
      video.play().catch(() => {}); // it begins with the first piece
    }
  }

  // Take a response's body to its end, and play it.
  async play(response, onPiece) {
    const type = response.headers.get("content-type");
    const streams = Source?.isTypeSupported(type) && response.body;
    if (!streams) {
      const blob = await response.blob();
      this.pieces = [blob];
      onPiece(blob.size);
      this.video.src = URL.createObjectURL(blob);
      await this.video.play().catch(() => {});
      return;
    }
    await this.opened;
    URL.revokeObjectURL(this.video.src);
    this.buffer = this.source.addSourceBuffer(type);
    this.buffer.addEventListener("updateend", () => this.append());
    const reader = response.body.getReader();
    // It is read as fast as it comes, whatever the player has room for: a client that waits is sent away.
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      this.pieces.push(value);
      this.waiting.push(value);
      onPiece(value.length);
      this.append();
    }
    this.ended = true;
    this.append();
  }

  // Seconds of video that have come.
  get seconds() {
    const ranges = this.buffer && this.source.readyState !== "closed" ? this.buffer.buffered : this.video.buffered;
    return ranges.length ? ranges.end(ranges.length - 1) : 0;
  }

  // All of it, once it has come.
  get file() {
    return new Blob(this.pieces, { type: "video/mp4" });
  }

  append() {
    if (!this.buffer || this.buffer.updating || this.source.readyState !== "open") return;
    if (!this.waiting.length) {
      if (this.ended) this.source.endOfStream();
      return;
    }
    try {
      this.buffer.appendBuffer(this.waiting[0]);
      this.waiting.shift();
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      const played = this.video.currentTime - KEPT_SECONDS;
      if (played > 0 && this.buffer.buffered.length && this.buffer.buffered.start(0) < played) {
        this.buffer.remove(0, played);
      } else {
        setTimeout(() => this.append(), 500);
      }
    }
  }
}
