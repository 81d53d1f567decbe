(function () {
  "use strict";
  function parsed(colour) {
    const parts = colour.match(/[\d.]+(?:e-?\d+)?/g).map(Number);
    return parts.length > 3 ? parts : parts.concat([1]);
  }

  function over(front, back) {
    return [0, 1, 2].map(function (n) { return front[n] * front[3] + back[n] * (1 - front[3]); }).concat([1]);
  }

  function ground(element) {
    const above = [];
    for (let it = element; it; it = it.parentElement) above.push(parsed(getComputedStyle(it).backgroundColor));
    // What a browser paints where nothing else is painted; the page's own ground lies on it.
    return above.reduceRight(function (back, front) { return over(front, back); }, parsed("rgb(255, 255, 255)"));
  }

  function luminance(colour) {
    const [red, green, blue] = colour.map(function (part) {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : Math.pow((share + 0.055) / 1.055, 2.4);
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  function contrast(one, other) {
    const [light, dark] = [luminance(one), luminance(other)].sort(function (a, b) { return b - a; });
    return (light + 0.05) / (dark + 0.05);
  }

  const faint = [];
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest("script, style, title, desc")) continue;
    texts += 1;
    const style = getComputedStyle(element);
    const back = ground(element);
    const type = over(parsed(element.closest("svg") ? style.fill : style.color), back);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const found = contrast(type, back);
    if (found < (large ? 3 : 4.5)) faint.push([found.toFixed(2), node.textContent.trim().slice(0, 40)]);
  }
  for (const element of document.querySelectorAll("input, button")) {
    const style = getComputedStyle(element);
    if (style.borderTopStyle === "none" || !element.checkVisibility({ opacityProperty: true })) continue;
    const found = contrast(over(parsed(style.borderTopColor), ground(element)), ground(element.parentElement));
    if (found < 3) faint.push([found.toFixed(2), "border of " + element.outerHTML.slice(0, 60)]);
  }
  return { texts: texts, faint: faint };
})()
