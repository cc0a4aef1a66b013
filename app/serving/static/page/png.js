// Encodes a canvas as a small 8-bit grey PNG, without waiting until the browser is idle, as canvas.toBlob does.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

export async function greyPng(context) {
  const { width, height } = context.canvas, { data } = context.getImageData(0, 0, width, height);
  const rows = new Uint8Array((width + 1) * height);  // each begins with its filter, 0
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) rows[row * (width + 1) + 1 + column] = data[4 * (row * width + column) + 1];
  }
  const compressed = new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate")));
  const head = [...bigEndian(width), ...bigEndian(height), 8, 0, 0, 0, 0];
  const parts = [chunk("IHDR", head), chunk("IDAT", new Uint8Array(await compressed.arrayBuffer())), chunk("IEND", [])];
  return new Uint8Array(await new Blob([Uint8Array.from(SIGNATURE), ...parts]).arrayBuffer());
}

function chunk(type, content) {
  const body = Uint8Array.from([...new TextEncoder().encode(type), ...content]);
  let crc = 0xffffffff;
  for (const byte of body) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return Uint8Array.from([...bigEndian(content.length), ...body, ...bigEndian((crc ^ 0xffffffff) >>> 0)]);
}

const bigEndian = (value) => [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];
