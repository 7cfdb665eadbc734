// Requests to the server's API.

/** An error response of the server; status 0: the server is unreachable. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const api = {
  /**
   * Send a request and return its response. Throws ApiError; goes to the login if the token is not valid.
   * @param {string} method
   * @param {string} url
   * @param {unknown} [body] Sent as JSON.
   */
  async request(method, url, body) {
    let response;
    try {
      response = await fetch(url, {
        method,
        headers: body === undefined ? {} : { "Content-Type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch {
      throw new ApiError(0, "the server is unreachable");
    }
    if (response.status === 401) window.location.assign("/login");
    if (!response.ok) {
      const content = await response.json().catch(() => ({}));
      throw new ApiError(response.status, content.error || `${response.status} ${response.statusText}`);
    }
    return response;
  },

  /**
   * Send a request and return the JSON of its response. Throws ApiError.
   * @param {string} method
   * @param {string} url
   * @param {unknown} [body]
   * @returns {Promise<any>}
   */
  async json(method, url, body) {
    return (await api.request(method, url, body)).json();
  },
};

/**
 * Return a header that a response must have.
 * @param {Response} response
 * @param {string} name
 */
export function header(response, name) {
  const value = response.headers.get(name);
  if (value === null) throw new Error(`the response has no header ${name}`);
  return value;
}
