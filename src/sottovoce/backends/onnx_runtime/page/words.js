// Which words of two texts differ: all but a longest common subsequence, case and punctuation aside.

const plain = (word) => word.toLowerCase().replace(/[^\p{L}\p{M}\p{N}']/gu, "");

export function differing(first, second) {
  const [a, b] = [first, second].map((text) => text.split(/\s+/).filter(Boolean));
  const common = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i][j] = plain(a[i]) === plain(b[j]) ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const [ofFirst, ofSecond] = [a, b].map((words) => words.map((word) => ({ word, differs: true })));
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (plain(a[i]) === plain(b[j])) ofFirst[i++].differs = ofSecond[j++].differs = false;
    else if (common[i + 1][j] >= common[i][j + 1]) i++;
    else j++;
  }
  return [ofFirst, ofSecond];
}
