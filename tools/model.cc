#include "tools/model.h"

#include <unistd.h>

#include <charconv>
#include <chrono>

#include "cpu/factory.h"
#include "cpu/isa.h"
#include "cpu/machine_info.h"
#include "cpu/reference_backend.h"
#include "cpu/topology.h"
#include "gpu/factory.h"
#include "prefetch/resident_experts.h"
#include "storage/checkpoint.h"
#include "tools/progress_bar.h"

namespace stoker::tools {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Result<DType> parse_float_type(std::string_view flag, const std::string& value,
                               DType default_type) {
  if (value.empty()) return default_type;
  if (value == "bf16") return DType::kBf16;
  if (value == "f32") return DType::kF32;
  return make_error(ErrorCode::kUnsupported, "--{} {} is not supported yet; bf16 and f32 are", flag,
                    value);
}

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

struct BackendChoice {
  std::unique_ptr<Team> team;
  std::unique_ptr<Backend> backend;
};

Result<BackendChoice> make_reference(const ModelFlags& flags) {
  for (const auto& [flag, value] :
       {std::pair("activations", flags.activations), {"kv-cache", flags.kv_cache}}) {
    if (!value.empty() && value != "f32") {
      return make_error(ErrorCode::kInvalidArgument,
                        "--backend reference computes in f32 only; leave --{} {} out", flag, value);
    }
  }
  BackendChoice choice;
  choice.backend = std::make_unique<ReferenceBackend>();
  return choice;
}

Result<BackendChoice> make_cpu(const ModelFlags& flags) {
  CpuBackendOptions options;
  ASSIGN_OR_RETURN(options.activations,
                   parse_float_type("activations", flags.activations, DType::kBf16));
  ASSIGN_OR_RETURN(options.kv_dtype, parse_float_type("kv-cache", flags.kv_cache, DType::kBf16));
  ASSIGN_OR_RETURN(options.isa, parse_isa(flags.isa));
  const std::vector<int> cpus = Topology::detect().pin_order(flags.threads);
  BackendChoice choice;
  choice.team = std::make_unique<Team>(static_cast<int>(cpus.size()), cpus);
  options.team = choice.team.get();
  ASSIGN_OR_RETURN(choice.backend, make_cpu_backend(options));
  return choice;
}

Result<BackendChoice> make_cuda(const ModelFlags& flags) {
  CudaBackendOptions options;
  ASSIGN_OR_RETURN(options.activations,
                   parse_float_type("activations", flags.activations, DType::kBf16));
  ASSIGN_OR_RETURN(options.kv_cache, parse_float_type("kv-cache", flags.kv_cache, DType::kBf16));
  BackendChoice choice;
  ASSIGN_OR_RETURN(choice.backend, make_cuda_backend(options));
  return choice;
}

Result<BackendChoice> make_backend(const ModelFlags& flags) {
  if (flags.backend == "reference") return make_reference(flags);
  if (flags.backend == "cuda") return make_cuda(flags);
  return make_cpu(flags);
}

MemoryNeed memory_need(const ModelConfig& config, const storage::Checkpoint& checkpoint,
                       const Backend& backend, const RunnerOptions& options) {
  const KvFormat kv = backend.kv_dtype() == DType::kF32 ? KvFormat::kF32 : KvFormat::kBf16;
  MemoryNeed need;
  need.dense_bytes = checkpoint.dense_bytes();
  for (const LayerSpec& spec : config.layers()) {
    if (spec.role == LayerRole::kMain && spec.ffn == FfnKind::kMoe) {
      need.expert_bytes += checkpoint.expert_bytes(spec.index) * spec.router.num_experts;
    }
  }
  need.context_tokens = options.context_tokens;
  need.kv_bytes = config.kv_bytes_per_token(kv) * options.context_tokens;
  need.workspace_bytes =
      Runner::workspace_bytes_needed(config, backend.activation_dtype(), options);
  return need;
}

}  // namespace

Result<std::int64_t> parse_size(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view suffix(end, static_cast<std::size_t>(text.data() + text.size() - end));
  static constexpr std::pair<std::string_view, std::int64_t> kUnits[] = {{"", 1},
                                                                         {"B", 1},
                                                                         {"KB", 1000},
                                                                         {"KiB", 1 << 10},
                                                                         {"MB", 1000 * 1000},
                                                                         {"MiB", 1 << 20},
                                                                         {"GB", 1000000000},
                                                                         {"GiB", 1LL << 30},
                                                                         {"TB", 1000000000000},
                                                                         {"TiB", 1LL << 40}};
  for (const auto& [unit, factor] : kUnits) {
    if (error == std::errc() && suffix == unit && number >= 0 && number <= INT64_MAX / factor)
      return number * factor;
  }
  return make_error(ErrorCode::kInvalidArgument,
                    "\"{}\" is not a size; write it as 512MiB, 48GiB or 24GB", text);
}

Result<std::filesystem::path> model_directory(const std::string& model) {
  std::filesystem::path path = model;
  if (model.empty()) {
    path = STOKER_SOURCE_MODEL;
    std::error_code ignored;
    const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", ignored);
    // A build moved with its source tree: build/<preset>/stoker.
    const std::filesystem::path beside = program.parent_path() / "../../models/ember";
    if (!std::filesystem::exists(path / "config.json")) path = beside;
  }
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    return make_error(ErrorCode::kNotFound,
                      "{} is not a directory; give a checkpoint directory with config.json and "
                      "*.safetensors",
                      path.string());
  }
  return path;
}

void add_model_argument(CLI::App& app, ModelFlags& flags, bool required) {
  app.add_option("MODEL", flags.model,
                 "Checkpoint directory (default: the model shipped with stoker)")
      ->required(required);
}

void add_model_flags(CLI::App& app, ModelFlags& flags) {
  app.add_option("--backend", flags.backend, "Which code computes; auto is cpu")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "reference"}))
      ->capture_default_str();
  app.add_option("--isa", flags.isa, "Instruction set of the cpu backend's kernels")
      ->check(CLI::IsMember({"auto", "scalar", "avx2", "avx512", "amx"}))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "Compute threads (default: one per physical core)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--ram", flags.ram,
                 "Memory that routed experts may take, e.g. 48GiB (default: no limit)");
  app.add_option("--activations", flags.activations,
                 "Activations between modules: bf16 (default) or f32")
      ->check(CLI::IsMember({"bf16", "f32"}));
  app.add_option("--kv-cache", flags.kv_cache,
                 "Cached keys: bf16 (default) or f32; fp8 comes later")
      ->check(CLI::IsMember({"bf16", "f32", "fp8"}));
}

void add_context_flag(CLI::App& app, ModelFlags& flags) {
  app.add_option("--ctx", flags.ctx, "Tokens of context to reserve memory for")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
}

std::int64_t MemoryNeed::total() const {
  return dense_bytes + expert_bytes + kv_bytes + workspace_bytes;
}

Status check_fits(const MemoryNeed& need, std::int64_t available_bytes) {
  if (available_bytes <= 0 || need.total() <= available_bytes) return {};
  return make_error(
      ErrorCode::kResource,
      "this model needs {:.2f} GiB: {:.2f} for routed experts, {:.2f} for all other weights, "
      "{:.2f} for {} tokens of context and {:.2f} for activations; {:.2f} GiB of memory are "
      "available. This version keeps the whole model in memory: free some, shorten --ctx, or take "
      "a smaller model",
      gib(need.total()), gib(need.expert_bytes), gib(need.dense_bytes), gib(need.kv_bytes),
      need.context_tokens, gib(need.workspace_bytes), gib(available_bytes));
}

Result<LoadedModel> load_model(const ModelFlags& flags, RowNeeds rows) {
  const Clock::time_point start = Clock::now();
  LoadedModel model;
  ASSIGN_OR_RETURN(model.directory, model_directory(flags.model));
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::load(model.directory));
  std::int64_t max_expert_bytes = 0;
  if (!flags.ram.empty()) {
    ASSIGN_OR_RETURN(max_expert_bytes, parse_size(flags.ram), "--ram");
  }
  ASSIGN_OR_RETURN(const auto checkpoint, storage::Checkpoint::open(model.directory, config));
  model.bytes = checkpoint->category_bytes();
  ASSIGN_OR_RETURN(BackendChoice choice, make_backend(flags));
  RunnerOptions options;
  options.context_tokens = std::min(flags.ctx, config.max_position_embeddings);
  if (rows.prefill_rows > 0) options.prefill_rows = rows.prefill_rows;
  if (rows.logit_rows > 0) options.prefill_logit_rows = rows.logit_rows;
  RETURN_IF_ERROR(check_fits(memory_need(config, *checkpoint, *choice.backend, options),
                             MachineInfo::detect().memory_available_bytes));
  model.team = std::move(choice.team);
  std::unique_ptr<ResidentExperts> experts;
  {
    ProgressBar progress("loading weights", ProgressBar::Unit::kBytes);
    ASSIGN_OR_RETURN(model.engine, Engine::load(config, *checkpoint, std::move(choice.backend),
                                                progress.callback()));
  }
  {
    ProgressBar progress("loading experts", ProgressBar::Unit::kBytes);
    ASSIGN_OR_RETURN(
        experts, ResidentExperts::load(config, *checkpoint, max_expert_bytes, progress.callback()));
  }
  ASSIGN_OR_RETURN(model.runner, Runner::create(model.engine, std::move(experts), options));
  model.load_seconds = seconds_since(start);
  return model;
}

}  // namespace stoker::tools
