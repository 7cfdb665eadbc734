// The server's API, and an outbox of commits that outlives the page.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const api = {
  async raw(method, url, body) {
    let answer;
    try {
      answer = await fetch(url, {
        method,
        headers: body === undefined ? {} : { "Content-Type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch {
      throw new ApiError(0, "the server does not answer");
    }
    if (answer.status === 401) window.location.assign("/login");
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      throw new ApiError(answer.status, said.error || `${answer.status} ${answer.statusText}`);
    }
    return answer;
  },

  async json(method, url, body) {
    return (await api.raw(method, url, body)).json();
  },
};

// Commits go out in order, each until the server says that it has it. They lie in localStorage meanwhile: a page that is
// closed or a server that is down loses none, and the ids make sending one twice harmless.
export class Outbox {
  constructor(annotator, onChange, onRefused) {
    this.key = `sam-annotate outbox ${annotator}`;
    this.onChange = onChange;
    this.onRefused = onRefused;
    this.letters = JSON.parse(localStorage.getItem(this.key) || "[]");
    this.sending = null;
  }

  get length() {
    return this.letters.length;
  }

  put(message) {
    this.letters.push({ id: crypto.randomUUID(), message });
    this.keep();
    this.flush();
  }

  keep() {
    localStorage.setItem(this.key, JSON.stringify(this.letters));
  }

  // Resolves when everything is there; one sender at a time.
  flush() {
    this.sending ??= this.send().finally(() => {
      this.sending = null;
    });
    return this.sending;
  }

  async send() {
    for (let wait = 500; this.letters.length; ) {
      const { id, message } = this.letters[0];
      this.onChange("saving", this.letters.length);
      try {
        await api.raw("PUT", `/api/commits/${id}`, message);
      } catch (error) {
        if (error.status === 0 || error.status >= 500) {
          this.onChange("waiting", this.letters.length);
          await new Promise((resolve) => setTimeout(resolve, wait));
          wait = Math.min(10000, wait * 2);
          continue;
        }
        if (error.status === 401) return;
        this.onRefused(message, error); // 4xx: it will never be taken
      }
      wait = 500;
      this.letters.shift();
      this.keep();
    }
    this.onChange("saved", 0);
  }
}
