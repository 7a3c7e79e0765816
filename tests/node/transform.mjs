// Runs the transformations of panels on the frames of their queries, with Grafana's own code.
//
// Reads a JSON list of {transformations, frames} from standard input and writes a list of lists of tables, one list for
// each: {fields: [{name, type, values}]}. A frame is the same; NaN and infinities travel as text, as in Prometheus.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

// The package is made for a browser.
import 'global-jsdom/register';

const grafana = createRequire(import.meta.url)('@grafana/data');
const { standardTransformers, standardTransformersRegistry, toDataFrame, transformDataFrame } = grafana;

standardTransformersRegistry.setInit(() =>
  [...new Set(Object.values(standardTransformers))].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation,
    editor: () => null,
  })),
);

const number = (value) => ({ NaN: NaN, '+Inf': Infinity, '-Inf': -Infinity })[value] ?? value;
const text = (value) => {
  if (typeof value !== 'number' || Number.isFinite(value)) {
    return value ?? null;
  }
  return Number.isNaN(value) ? 'NaN' : value > 0 ? '+Inf' : '-Inf';
};

function frame({ name, refId, fields }) {
  const read = (field) => (field.type === 'number' ? field.values.map(number) : field.values);
  return toDataFrame({ name, refId, fields: fields.map((field) => ({ ...field, values: read(field) })) });
}

function table(data) {
  return {
    fields: data.fields.map((field) => ({
      name: grafana.getFieldDisplayName(field, data),
      type: field.type,
      values: Array.from(field.values, text),
    })),
  };
}

function run({ transformations, frames }) {
  return new Promise((resolve, reject) => {
    transformDataFrame(transformations, frames.map(frame)).subscribe({
      next: (tables) => resolve(tables.map(table)),
      error: reject,
    });
  });
}

const jobs = JSON.parse(readFileSync(0, 'utf-8'));
process.stdout.write(JSON.stringify(await Promise.all(jobs.map(run))));
