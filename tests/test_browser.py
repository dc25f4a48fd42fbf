"""Every page in a browser: accessible, whole, nothing fetched from elsewhere, no sideways scroll.

Needs node, Chromium, and the npm packages playwright-core and axe-core, found from the top of the
repository or by NODE_PATH; skipped where any of them is missing."""

import json
import shutil
import subprocess

import pytest

from test_site import ROOT, name, NOTEBOOKS, site  # noqa: F401

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
VISIT = r"""
const { chromium } = require("playwright-core");
const axe = require("fs").readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const { address, pages, screen, executablePath } = JSON.parse(process.argv[1]);
const foreign = (url) => !/^(data|blob):/.test(url) && !url.startsWith(address);
const open = () => document.querySelectorAll("details").forEach((each) => { each.open = true; });
const seen = () => [
  document.documentElement.scrollWidth > screen.width && "scrolls sideways",
  [...document.images].some((image) => !image.naturalWidth) && "a picture is missing",
  /\\\(|\\\[|\$\$/.test(document.querySelector("main").innerText) && "a formula is not set",
  document.querySelector(".katex-error") && "a formula has a mistake",
];
const ground = () => getComputedStyle(document.body).backgroundColor;
const toggle = () => document.querySelector(".quarto-color-scheme-toggle").click();
const audit = () => axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] });
(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const context = await browser.newContext(screen);
  const faults = [];
  for (const name of pages) {
    const page = await context.newPage(), fault = (what) => faults.push(`${name}: ${what}`);
    page.on("request", (request) => foreign(request.url()) && fault(request.url()));
    page.on("pageerror", (error) => fault(error.message));
    page.on("console", (message) => message.type() === "error" && fault(message.text()));
    await page.goto(address + name, { waitUntil: "load" });
    await page.evaluate(open);
    await page.waitForTimeout(200);
    for (const what of await page.evaluate(seen)) if (what) fault(what);
    await page.evaluate(axe);
    const { violations } = await page.evaluate(audit);
    for (const { id, nodes } of violations) fault(`${id}: ${nodes[0].target}`);
    if (name === pages.at(-1)) {
      const before = await page.evaluate(ground);
      await page.evaluate(toggle);
      await page.waitForTimeout(200);
      if (before === await page.evaluate(ground)) fault("light or dark, it looks the same");
    }
    await page.close();
  }
  await browser.close();
  console.log(JSON.stringify(faults));
})();
"""


def missing() -> str | None:
    """What a visit by browser needs and does not find."""
    if not CHROMIUM: return "no Chromium"
    if not shutil.which("node"): return "no node"
    probe = "['playwright-core', 'axe-core'].forEach((name) => require.resolve(name))"
    found = subprocess.run(["node", "-e", probe], cwd=ROOT, capture_output=True)
    return "no playwright-core or axe-core" if found.returncode else None


REASON = missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_pages_in_a_browser(site, width, scheme):  # noqa: F811
    screen = {"viewport": {"width": width, "height": 900}, "colorScheme": scheme,
              "isMobile": width < 800, "hasTouch": width < 800}
    what = {"address": site.address, "pages": [f"{name(path)}.html" for path in NOTEBOOKS],
            "screen": screen, "executablePath": CHROMIUM}
    command = ["node", "-e", VISIT, json.dumps(what)]
    visit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert visit.returncode == 0, visit.stderr
    assert json.loads(visit.stdout) == []
