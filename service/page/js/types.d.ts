/** Shapes of the service's replies, as far as the page reads them. Never served: types only. */

export interface ModelShape {
  n_layer: number;
  n_embd: number;
  heads: number[];
  head_dim: number | null;
}

export interface Progress {
  step: number | null;
  max_steps: number | null;
  loss: number | string | null;
  val_loss: number | string | null;
  tokens_per_s: number | null;
  eta_s: number | null;
  done: number | null;
  of: number | null;
  unit: string | null;
}

export interface QueuePlace {
  position: number;
  jobs_ahead: number;
  eta_s: [number, number] | null;
}

export interface Job {
  id: string;
  kind: string;
  run: string | null;
  dataset: string | null;
  status: string;
  terminal: boolean;
  allowed_actions: string[];
  created_at: string;
  started_at: string | null;
  finished_at: string | null;
  progress: Progress;
  error: { code: string; detail: string; step?: number | null; hint?: string | null } | null;
  waiting_for: string[];
  history: { time: string; from: string | null; to: string; reason: string }[];
  warnings: { code: string; detail: string }[];
  priority: number;
  queue: QueuePlace | null;
  colour?: number | null;
  model?: ModelShape | null;
  worker?: { host: string; device: string } | null;
  config?: Record<string, any> | null;
  waiting_on?: { job: string; kind: string; name: string; status: string; eta_s: [number, number] | null }[];
}

export interface Worker {
  id: string;
  host: string;
  slots: number;
  busy: number;
  gpus: { name: string; memory_bytes: number }[];
  memory_bytes: number | null;
}

export interface Preset {
  name: string;
  title?: string;
  free_name?: string;
  model?: ModelShape & { vocab_size: number; block_size: number };
}

export interface Budget {
  parameters: number;
  kv_bytes_per_token: number;
  flops_per_token: number;
  softmax_elements: number;
  memory: { required_bytes: number };
  disk: { total_bytes: number; periodic: number };
  schedule: { steps: number; tokens_per_step: number; tokens: number; train_tokens: number | null; epochs: number | null };
}

export interface Validation {
  kind: string;
  run: string | null;
  config: Record<string, any>;
  budget: Budget | null;
  warnings: { code: string; detail: string }[];
  estimate?: { time_s: [number, number]; tokens_per_s: number; from: string } | null;
  queue?: QueuePlace | null;
}

export interface Checkpoint {
  file: string;
  step: number;
  val_loss: number | string | null;
  full: boolean;
  size_bytes: number;
  pinned: boolean;
}

export interface Run {
  name: string;
  status: string;
  job: string | null;
  colour: number;
  model: ModelShape;
  checkpoint_count?: number;
  checkpoints: Checkpoint[];
  config: Record<string, any>;
  size_bytes: number;
  outcome: Record<string, any> | null;
}
