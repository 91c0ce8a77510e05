"""A headless Chromium, driven by the WebDriver protocol: no package is needed for it."""

import base64
import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
KEYS = {"left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015"}


class Browser:
    """One window."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        options = {
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        }
        options["binary"] = CHROMIUM
        wanted = {"goog:chromeOptions": options}
        wanted["goog:loggingPrefs"] = {"browser": "ALL", "performance": "ALL"}
        found = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{found['sessionId']}"

    def ask(self, method, path, body=None):
        data = None if method != "POST" else json.dumps(body or {}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:500]) from None

    def do(self, path, **body):
        return self.ask("POST", f"{self.session}/{path}", body)

    def run(self, code):
        """The value of JavaScript that returns."""
        return self.do("execute/sync", script=code, args=[])

    def wait(self, code, seconds=120):
        """Until JavaScript returns something true."""
        end = time.monotonic() + seconds
        while not (value := self.run(code)):
            assert time.monotonic() < end, f"{code}: not true in {seconds} seconds"
            time.sleep(0.1)
        return value

    def cdp(self, cmd, **params):
        return self.do("goog/cdp/execute", cmd=cmd, params=params)

    def window(self, width, height, mobile=False, dark=False):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.cdp("Emulation.setDeviceMetricsOverride", **metrics)
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    def point(self, selector, across, down, kind="mouse", press=True):
        """Move a pointer to a place in an element, 0 to 1 from its corner, and click or tap."""
        box = self.run(
            f"const e = document.querySelector('{selector}');"
            "e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height];"
        )
        place = {"x": int(box[0] + across * box[2]), "y": int(box[1] + down * box[3])}
        steps = [{"type": "pointerMove", "duration": 0, **place}]
        if press:
            steps += [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        source = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}}
        self.do("actions", actions=[{**source, "actions": steps}])

    def press(self, key):
        value = KEYS.get(key, key)
        steps = [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
        self.do("actions", actions=[{"type": "key", "id": "keys", "actions": steps}])

    def screenshot(self, path):
        data = self.ask("GET", f"{self.session}/screenshot")
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def errors(self):
        """What the console says."""
        return [entry["message"] for entry in self.do("se/log", type="browser")]

    def requests(self):
        """The addresses asked for since the last call, but for those inside the page."""
        messages = [
            json.loads(e["message"])["message"] for e in self.do("se/log", type="performance")
        ]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in sent]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]


@contextlib.contextmanager
def open_browser():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        browser = Browser(port)
        yield browser
        browser.ask("DELETE", browser.session)
    finally:
        server.terminate()
        server.wait()
