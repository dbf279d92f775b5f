// A stand-in for Worker where pages are opened from a folder, for which browsers refuse real ones: the same script in a
// hidden frame, so that search works. Without it the theme's offline plugin would load one from another host.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super()
    this.url = url
    this.frame = document.createElement("iframe")
    this.frame.hidden = true
    document.body.appendChild(this.frame)
    const inner = this.frame.contentWindow
    window.addEventListener("message", event => {
      if (event.source === inner) this.dispatchEvent(new MessageEvent("message", { data: event.data }))
    })
    const load = "importScripts = (...urls) => urls.reduce((last, url) => last.then(() => new Promise((done, failed) => {"
      + "const script = document.createElement('script'); script.src = url; script.onload = done; script.onerror = failed;"
      + "document.body.appendChild(script) })), Promise.resolve())"
    const send = "postMessage = data => parent.dispatchEvent(new MessageEvent('message', { data, source: window }))"
    inner.document.open()
    inner.document.write(`<body><script>${load};${send}</` + `script><script src="${url}"></` + "script></body>")
    inner.document.close()
    this.ready = new Promise(done => { this.frame.onload = done })
  }
  postMessage(data) {
    this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
  }
  terminate() { this.frame.remove() }
}
