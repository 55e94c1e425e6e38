// Drives the page of a table, and tells the frame around it what it found.
const findings = {};
const requests = [];
addEventListener("securitypolicyviolation", (event) => requests.push(event.blockedURI || event.violatedDirective));
const names = (table = document.querySelector("table.grid")) =>
  [...table.tBodies].filter((body) => !body.hidden).map((body) => body.rows[0].cells[0].textContent.trim());
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const type = (id, text) => { const field = document.getElementById(id); field.value = text; field.dispatchEvent(new Event("input")); };
const heads = [...document.querySelector("table.grid").querySelectorAll("thead button")];
findings.names = names();
heads[1].click();
findings.descending = [names(), heads[1].closest("th").getAttribute("aria-sort")];
heads[1].click();
findings.ascending = names();
heads[1].click();
findings.unsorted = [names(), heads[1].closest("th").getAttribute("aria-sort")];
type("methods", "dann");
findings.filtered = [names(), document.getElementById("shown").textContent];
findings.curves = [...document.querySelectorAll("#training .chart")].map((one) => [...one.querySelectorAll(".legend li")].map((item) => item.textContent));
type("methods", "");
type("tasks", "optdigits");
findings.columns = heads.filter((one) => one.offsetParent).map((one) => one.textContent);
type("tasks", "");
const hide = document.querySelector(".kind[value=gain]");
hide.click();
findings.hidden = [...document.querySelectorAll("tr.gain")].every((line) => !line.offsetParent);
hide.click();
const first = document.querySelector("table.grid td button");
first.focus();
press(first, "ArrowRight");
findings.right = document.activeElement.getAttribute("aria-label");
press(document.activeElement, "ArrowLeft");
press(document.activeElement, "ArrowDown");
findings.down = document.activeElement.getAttribute("aria-label");
document.activeElement.click();
const dialog = document.querySelector("dialog");
findings.open = [dialog.open, dialog.querySelector("h2").textContent, dialog.contains(document.activeElement)];
findings.headings = [...dialog.querySelectorAll("h3")].map((one) => one.textContent);
findings.charts = [...dialog.querySelectorAll(".chart > b")].map((one) => one.textContent);
findings.legend = [...dialog.querySelectorAll(".chart")][0].querySelector(".legend").textContent;
findings.marks = [...dialog.querySelectorAll(".chart")][0].querySelectorAll(".mark").length;
findings.pictures = [...dialog.querySelectorAll("img")].map((one) => one.src.slice(0, 22));
findings.command = dialog.querySelector("pre").textContent;
findings.log = dialog.querySelectorAll("pre")[1].textContent;
findings.settings = Object.fromEntries([...dialog.querySelectorAll("table.settings")].at(0).querySelectorAll("tbody tr").values()
  .map((line) => [...line.cells].map((cell) => cell.textContent)).map(([key, ...values]) => [key, values]));
dialog.querySelectorAll(".seeds button")[1].click();
findings.second = dialog.querySelector("pre").textContent;
dialog.querySelector(".close").click();
findings.closed = [!dialog.open, document.activeElement.getAttribute("aria-label")];
const [one, other] = document.querySelectorAll("#compare select");
one.value = "1"; other.value = "0"; other.dispatchEvent(new Event("change"));
findings.compared = [...document.querySelectorAll("#compare tbody th")].map((cell) => cell.textContent);
findings.drawn = [...document.querySelectorAll(".drawn")].every((section) => section.hidden);
findings.links = [...document.querySelectorAll("a[href], [src], [srcset], link, form, iframe")].map((element) =>
  element.getAttribute("href") ?? element.getAttribute("src") ?? element.getAttribute("srcset") ?? element.outerHTML).filter((link) => !link.startsWith("data:"));
fetch("https://example.org/").catch(() => {
  findings.requests = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
  setTimeout(() => {
    findings.refused = requests;
    findings.title = document.title;
    parent.postMessage(JSON.stringify(findings), "*");
  }, 50);
});
