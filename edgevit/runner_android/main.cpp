// RUNNER --job PATH: does the job and leaves record.json beside it: schema 1 of edgevit.devices.in_app.

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "engine.hpp"
#include "json.hpp"
#include "loop.hpp"
#include "record.hpp"
#include "refused.hpp"

namespace fs = std::filesystem;
using namespace edgevit;

namespace {

constexpr long kSchema = 1;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || text.fail()) throw Refused(path.string() + " cannot be read" + kAgain);
  return text.str();
}

// Beside its place, then renamed there: whole or absent.
void leave(const fs::path& path, const std::string& text) {
  const fs::path part = path.string() + ".part";
  std::ofstream file(part, std::ios::binary);
  file << text;
  file.close();
  if (!file) throw Refused(part.string() + " cannot be written: is there space left?");
  fs::rename(part, path);
}

// VmRSS (now) or VmHWM (the most so far) of this process, in bytes.
long long memory_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field + ':', 0) == 0) return std::atoll(line.c_str() + field.size() + 1) * 1024;
  }
  throw Refused("/proc/self/status has no " + field);
}

int cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

// Which runtime this is, what the kernel tells, and which trees of engines are whole here.
void about(const Json& job, const fs::path& work, Record& record) {
  std::vector<std::string> present;
  for (const Json& tree : job.at("trees").array()) {
    std::error_code none;
    if (fs::exists(work / "trees" / (tree.string() + ".whole"), none)) present.push_back(tree.string());
  }
  utsname system{};
  uname(&system);
  record.put("arch", text(system.machine)).put("cores", std::to_string(cores()));
  record.put("memory_bytes", std::to_string(static_cast<long long>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE)));
  record.put("present", list(present, text));
}

// The engine of a job, and the float32 inputs that were pushed, one after the other.
struct Loaded {
  std::unique_ptr<Engine> engine;
  std::vector<float> values;
  size_t size;  // of one input
  double seconds;

  Loaded(const Json& job, const fs::path& work) {
    if (job.at("runner").string() != kTarget) throw Refused("this is the runner " + std::string(kTarget) + kAgain);
    const auto shape = job.at("input").at("shape").integers();
    size = 1;
    for (const long side : shape) size *= static_cast<size_t>(side);
    const size_t count = job.has("count") ? static_cast<size_t>(job.at("count").integer()) : 1;
    const std::string bytes = read(work / "input.f32");
    if (bytes.size() != size * count * sizeof(float)) throw Refused("input.f32 does not hold inputs of this shape" + kAgain);
    values.resize(size * count);
    bytes.copy(reinterpret_cast<char*>(values.data()), bytes.size());

    const Json& options = job.at("options");
    const double start = now();
    engine = open_file(job.at("engine").string(), options, options.has("threads") ? static_cast<int>(options.at("threads").integer()) : 0);
    seconds = now() - start;
    if (engine->input_shape() != shape) throw Refused("the engine's input has another shape than the job's" + kAgain);
  }

  void give(size_t place) { std::copy_n(values.begin() + static_cast<long>(place * size), size, engine->input()); }
};

void check(const Json& job, const fs::path& work, Record& record) {
  Loaded loaded(job, work);
  size_t length = 1;
  for (const long side : loaded.engine->output_shape()) length *= static_cast<size_t>(side);
  std::vector<std::string> outputs;
  for (size_t place = 0; place * loaded.size < loaded.values.size(); ++place) {
    loaded.give(place);
    const float* scores = loaded.engine->run();
    outputs.push_back(list(std::vector<float>(scores, scores + length), number));
  }
  record.put("outputs", list(outputs, [](const std::string& row) { return row; }));
}

void round(const Json& job, const fs::path& work, Record& record) {
  const double most = job.at("max_seconds").number(), least = job.at("min_seconds").number();
  const auto baseline = memory_bytes("VmRSS");
  Loaded loaded(job, work);
  Engine& engine = *loaded.engine;
  const auto after = memory_bytes("VmHWM");
  loaded.give(0);
  const double first = once(engine);
  const WarmUp warm = warm_up(engine, job.at("warmup_s").number(), most);
  const auto times = sample(engine, job.at("min_samples").integer(), least, most);
  record.put("runtime", text(kRuntime)).put("runtime_version", text(runtime_version()));
  record.put("load_ms", number(loaded.seconds * 1e3)).put("first_ms", number(first * 1e3));
  Record warmed;
  warmed.put("seconds", number(warm.seconds)).put("samples", std::to_string(warm.samples));
  record.put("warmup", warmed.put("stable", warm.stable ? "true" : "false").json());
  record.put("samples_ms", list(times, [](double value) { return number(value * 1e3); }));
  record.put("baseline_memory_bytes", std::to_string(baseline)).put("load_memory_bytes", std::to_string(after));
  record.put("peak_memory_bytes", std::to_string(memory_bytes("VmHWM")));
  record.put("threads", std::to_string(job.at("options").at("threads").integer()));
  record.put("placement", "[\"CPU\"]");  // neither runtime is given anything else
}

void perform(const Json& job, const fs::path& work, Record& record) {
  const std::string kind = job.at("kind").string();
  if (kind == "about") return about(job, work, record);
  if (kind == "check") return check(job, work, record);
  if (kind == "round") return round(job, work, record);
  throw Refused("this runner knows no job of kind " + kind + kAgain);
}

}  // namespace

int main(int count, char** words) {
  if (count != 3 || std::string(words[1]) != "--job") {
    std::cerr << "usage: " << words[0] << " --job PATH (edgevit profile does that)\n";
    return 2;
  }
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // it uploads from a thread of its own, which would land in the samples
  const fs::path path = words[2], work = path.parent_path();
  std::string id, error;
  Record record;
  try {
    const Json job = Json::parse(read(path));
    id = job.at("id").string();
    if (job.at("schema").integer() != kSchema) throw Refused("the job has another schema than this runner" + kAgain);
    perform(job, work, record);
  } catch (const std::exception& found) {
    error = found.what();
    record = Record().put("error", text(error));
  }
  try {
    leave(work / "record.json", record.put("schema", std::to_string(kSchema)).put("id", text(id)).json());
  } catch (const std::exception& found) {
    error = found.what();
  }
  if (!error.empty()) std::cerr << "edgevit: " << error << '\n';
  return error.empty() ? 0 : 1;
}
