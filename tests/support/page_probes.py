"""What a test asks a page in the browser: JavaScript expressions for `page.evaluate`.

They know HTML, plotly's `.plot` elements and WCAG's arithmetic, and nothing of how this project's
page is made.
"""

# Every piece of text, those of closed <details> and of charts among them, one after the other.
WORDS = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!parent.closest("script, style, noscript")) found.push(walker.currentNode.textContent);
  }
  return found.join(" ");
}"""

# The cells of each row of every table.
ROWS = """() => [...document.querySelectorAll("tbody tr")].map(
  (row) => [...row.cells].map((cell) => cell.textContent.trim()))"""

# How many rows of a table can be seen, of the one that shows most.
MOST_ROWS = """() => Math.max(...[...document.querySelectorAll("tbody")].map(
  (body) => [...body.rows].filter((row) => row.checkVisibility()).length))"""

# A table's column by its title: {values, sort}, of the first table that has all these titles.
COLUMN = """([title, others]) => {
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    const titles = heads.map((head) => head.innerText.trim());
    if (![title, ...others].every((each) => titles.includes(each))) continue;
    const k = titles.indexOf(title);
    return { values: [...table.tBodies[0].rows].map((row) => row.cells[k].textContent.trim()),
             sorts: heads.map((head) => head.ariaSort) , sort: heads[k].ariaSort };
  }
}"""

# Whether every chart is there, as wide as its place.
DRAWN = """() => [...document.querySelectorAll(".plot")].every((plot) =>
  plot.querySelector(".main-svg") && plot._fullLayout
  && Math.abs(plot._fullLayout.width - plot.clientWidth) < 2)"""

# By how much charts are drawn larger than plotly meant, all different values: 1 is as meant.
SCALES = """() => [...new Set([...document.querySelectorAll(".plot .main-svg")].map(
  (svg) => Math.round(100 * svg.getScreenCTM().a) / 100))]"""

# Opens or closes all that folds, and goes back to the beginning.
FOLD = """(open) => {
  document.querySelectorAll("details").forEach((each) => { each.open = open; });
  scrollTo({ top: 0, behavior: "instant" });
}"""

# What reaches beyond the right edge of the screen, and cannot be scrolled to by itself.
TOO_WIDE = """() => [...document.querySelectorAll("body *")].filter((each) => {
  if (!each.checkVisibility() || each.closest("svg")) return false;
  if (each.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let p = each.parentElement; p !== document.body; p = p.parentElement) {
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(p).overflowX)) return false;
  }
  return true;
}).map((each) => each.outerHTML.slice(0, 160))"""

# Pixels of the points of a chart's visible traces that answer a mouse, on the screen: [x, y].
POINTS = """(name) => {
  const plot = document.querySelector(`.plot[data-chart="${name}"]`);
  plot.scrollIntoView({ block: "center", behavior: "instant" });
  const box = plot.getBoundingClientRect(), layout = plot._fullLayout, found = [];
  for (const trace of plot._fullData) {
    if (trace.visible !== true || trace.hoverinfo === "skip" || !trace.x) continue;
    const axis = (id) => layout[id[0] + "axis" + id.slice(1)];
    const x = axis(trace.xaxis), y = axis(trace.yaxis);
    trace.x.forEach((value, k) => {
      const at = [x.d2p(value), y.d2p(trace.y[k])];
      if (at[0] < 0 || at[1] < 0 || at[0] > x._length || at[1] > y._length) return;
      if (Number.isNaN(at[0] + at[1])) return;
      found.push([box.left + x._offset + at[0], box.top + y._offset + at[1]]);
    });
  }
  return found;
}"""

# Texts that can be seen with less contrast than WCAG AA asks for (1.4.3): [ratio, text]. Colours
# are those computed, over the backgrounds behind the text; texts of charts by their fill.
FAINT = """() => {
  const parsed = (text) => {
    const found = text.match(/[\\d.]+/g) || [0, 0, 0, 0];
    const [r, g, b, a = 1] = found.map(Number);
    return { rgb: [r, g, b], a };
  };
  const over = (top, under) => top.rgb.map((v, k) => v * top.a + under[k] * (1 - top.a));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map(
      (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const above = [];
    for (let each = element; each; each = each.parentElement) {
      above.unshift(parsed(getComputedStyle(each).backgroundColor));
    }
    return above.reduce((under, each) => over(each, under), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest("script, style, noscript")) continue;
    if (!element.checkVisibility() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), under = behind(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(over(parsed(ink), under)), light(under)].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push([ratio, text.slice(0, 60)]);
  }
  return found;
}"""

# How light the page is behind everything: 0 black, 255 white.
PAPER = """() => {
  const found = [document.body, document.documentElement].map(
    (each) => getComputedStyle(each).backgroundColor).find((c) => !/, 0\\)$/.test(c));
  return found ? Math.max(...found.match(/[\\d.]+/g).slice(0, 3).map(Number)) : 255;
}"""

# What a keyboard has to reach, in order of the document: those that can be seen.
CONTROLS = """() => [...document.querySelectorAll(
    "a[href], button, summary, input, select, textarea, [tabindex='0']")]
  .filter((each) => !each.disabled && each.tabIndex >= 0 && each.checkVisibility()).length"""

# What has the focus: its number among all elements, and whether that is to be seen.
FOCUSED = """() => {
  const now = document.activeElement, style = getComputedStyle(now);
  const box = now.getBoundingClientRect();
  const ringed = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
  const seen = box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0;
  return [[...document.querySelectorAll("*")].indexOf(now), now.tagName, ringed && seen,
          now.outerHTML.slice(0, 120)];
}"""

# What would run foreign code, or lead to it.
FOREIGN = """() => [...document.querySelectorAll("*")].filter((each) =>
    [...each.attributes].some((a) => /^on/i.test(a.name) || /^\\s*javascript:/i.test(a.value)))
  .map((each) => each.outerHTML.slice(0, 200))"""
