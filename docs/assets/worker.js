// The theme searches in a Worker, which browsers refuse to pages that are opened from a folder (file://). There, a hidden frame
// does the same: it runs the script, and messages go to and fro.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      this.ready = new Promise(done => frame.addEventListener("load", done, { once: true }))
      this.frame = frame
      const setup = "postMessage = data => parent.postMessage(data, '*')"
      frame.srcdoc = `<body><script>${setup}</script><script src="${new URL(url, document.baseURI)}"></script></body>`
      const attach = () => document.body.append(frame)
      if (document.body) attach()
      else addEventListener("DOMContentLoaded", attach)
      addEventListener("message", event => {
        if (event.source !== frame.contentWindow) return
        const copy = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(copy)
        this.onmessage?.(copy)
      })
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
