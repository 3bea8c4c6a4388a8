/* Search runs in a worker, which browsers do not start on a page that was opened as a file. There, this class stands in
   for `Worker` and runs the script in a hidden frame. Material for MkDocs would load such a script from the web; the
   name IFrameWorker tells its search where it runs. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const scope = (this.scope = frame.contentWindow)
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = frame.contentDocument.createElement("script")
      script.onload = () => {
        for (const data of this.waiting.splice(0)) this.post(data)
        this.waiting = null
      }
      script.src = url
      frame.contentDocument.body.append(script)
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.post(data)
    }

    post(data) {
      this.scope.dispatchEvent(new this.scope.MessageEvent("message", { data }))
    }

    terminate() {
      this.scope.frameElement.remove()
    }
  }
  window.Worker = window.IFrameWorker
}
