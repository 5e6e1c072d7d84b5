// A whole model: reads a text with sparse attention, then answers questions about it. The model is the small one that
// ships with the package; any that `openNodeModel` loads will do.
// node examples/answer.mjs
import { readFileSync } from 'node:fs';
import { LanguageModel } from 'minference-webgpu/model';
import { openNodeModel } from 'minference-webgpu/model/node';
import { openNodeDevice, pollGently } from 'minference-webgpu/node';

const asset = (name) => new URL(`../assets/${name}`, import.meta.url);
const novel = readFileSync(asset('text/austen-persuasion-ch1-2.txt'), 'utf8').split(/(?<=\.)\s+/);
const facts = ['The pass key is 48213. Keep in mind that 48213 is the pass key.', 'The code of blue-otter-512 is 90417.'];
const text = [...novel.slice(0, 8), facts[0], ...novel.slice(8, 16), facts[1], ...novel.slice(16, 20)].join(' ');
const questions = [
  ['What is the pass key?', 'The pass key is'],
  ['What is the code of blue-otter-512?', 'The code of blue-otter-512 is'],
];

pollGently(); // this program is nobody else's
const device = await openNodeDevice();
const loaded = await openNodeModel(asset('model/minference-retrieval-3m.gguf').pathname);
const { tokenizer } = loaded;
const document = tokenizer.encode(`Read the text below. A question about it follows.\n\nText: ${text}`);
const model = await LanguageModel.load(device, loaded, { contextLength: document.length + 64 });

const patterns = { kind: 'vertical_slash', verticalSize: 200, slashSize: 200 };
await model.prefill(document, { patterns, denseBelow: 0 });
console.log(`${document.length} tokens`);
for (const [question, start] of questions) {
  model.truncate(document.length); // Each question follows the text alone.
  const tokens = [];
  const prompt = tokenizer.encode(`\n\n${question}\nAnswer: ${start}`, false);
  for await (const token of model.generate(prompt, { maxTokens: 8 })) tokens.push(token);
  console.log(`${question} ${start}${tokenizer.decode(tokens)}`);
}
model.destroy();
await loaded.close();
device.destroy();
