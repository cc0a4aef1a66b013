// Numbers and codes of the API as plain sentences.

const NUMBERS = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

export const inWords = (value) => NUMBERS[value] || count(value);

const WARNINGS = {
  blank: () => "Blank: no ink was found, so there is nothing to judge.",
  low_contrast: () => "Low contrast: the ink is hardly darker than the paper.",
  touches_border: () => "The drawing touches the edge of the image; a part of it may be missing.",
  several_glyphs: (count) => `${count ? `${count} glyphs` : "Several glyphs"}: the network knows single digits. Give it one digit at a time.`,
  upscaled: () => "Very small: below 12 pixels no rate of false alarms is promised.",
  uncalibrated: () => "The detector was not calibrated on images of this kind; more of them may be flagged than alpha says.",
};

export function warningSentence(warning) {
  const [code, count] = warning.split(/:\s*/);
  return WARNINGS[code] ? WARNINGS[code](count) : `${warning.replaceAll("_", " ")}.`;
}

// Warnings that decide: what is blank or several things is not one digit, whatever its score.
const DECIDING = { blank: "A blank page", several_glyphs: "Several glyphs" };

export function decidingWarning(warnings) {
  const code = warnings.map((warning) => warning.split(":")[0]).find((warning) => warning in DECIDING);
  return code ? DECIDING[code] : null;
}

export const number = (value, digits = 2) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
export const count = (value) => Math.round(value).toLocaleString("en");

// How rare a p-value is, without false precision: "one in five", "about one in 300", "fewer than one in 10,000".
export function rarity(p) {
  if (p > 0.5) return null;
  const times = 1 / Number(p.toPrecision(1)); // agrees with the p-value as it is written
  if (times >= 10_000) return "fewer than one in 10,000";
  if (times < 10.5) return `one in ${NUMBERS[Math.round(times)]}`;
  const unit = 10 ** Math.floor(Math.log10(times));
  return `about one in ${count(Math.round(times / unit) * unit)}`;
}

export function raritySentence(p) {
  const rare = rarity(p);
  if (!rare) return "Most normal digits look more unusual than this.";
  const start = rare.startsWith("fewer") ? "Of normal digits, fewer" : rare[0].toUpperCase() + rare.slice(1);
  return rare.startsWith("fewer") ? `${start}${rare.slice(5)} look this unusual.` : `${start} normal digits looks this unusual.`;
}

// A p-value with one digit, as more are not known.
export const pValue = (p) => (p < 1e-4 ? "below 0.0001" : Number(p.toPrecision(1)).toString());

export function alphaSentence(alpha) {
  const perThousand = 1000 * alpha;
  if (perThousand >= 1) return `Of 1,000 normal digits about ${count(perThousand)} would be flagged.`;
  return `Of 100,000 normal digits about ${count(100 * perThousand)} would be flagged.`;
}
