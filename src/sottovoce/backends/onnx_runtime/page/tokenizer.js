// From token ids to text, by the decoder that tokenizer.json names: bytes (Whisper), or pieces with bytes for the rest (Moonshine).

// GPT-2's table: the printable bytes stand for themselves, the others for characters from 256 on.
function byteOfCharacter() {
  const printable = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  const table = new Map();
  let next = 256;
  for (let b = 0; b < 256; b++) table.set(String.fromCharCode(printable(b) ? b : next++), b);
  return table;
}

export class Tokenizer {
  constructor(content) {
    this.pieces = new Map(Object.entries(content.model.vocab).map(([piece, id]) => [id, piece]));
    this.special = new Set();
    this.added = new Map(); // tokens that are text as they are
    for (const token of content.added_tokens) {
      if (token.special) this.special.add(token.id);
      else this.added.set(token.id, token.content);
    }
    const types = content.decoder.type === "Sequence" ? content.decoder.decoders.map((d) => d.type) : [content.decoder.type];
    if (types.includes("ByteLevel")) this.bytesOf = this.byteLevel(byteOfCharacter());
    else if (types.includes("ByteFallback")) this.bytesOf = this.byteFallback();
    else throw new Error(`tokenizer.json has a decoder of the type ${types.join(", ")}; this page reads ByteLevel and ByteFallback`);
  }

  byteLevel(table) {
    const encoder = new TextEncoder();
    return (piece) => Array.from(piece).flatMap((c) => (table.has(c) ? [table.get(c)] : [...encoder.encode(c)]));
  }

  byteFallback() {
    const encoder = new TextEncoder();
    return (piece) => {
      const byte = /^<0x([0-9A-F]{2})>$/.exec(piece);
      return byte ? [parseInt(byte[1], 16)] : [...encoder.encode(piece.replaceAll("\u2581", " "))];
    };
  }

  decode(ids) {
    const encoder = new TextEncoder(), bytes = [];
    for (const id of ids) {
      if (this.special.has(id)) continue;
      if (this.added.has(id)) bytes.push(...encoder.encode(this.added.get(id)));
      else if (this.pieces.has(id)) bytes.push(...this.bytesOf(this.pieces.get(id)));
    }
    return new TextDecoder().decode(Uint8Array.from(bytes)).trim();
  }
}
