// What threads may share, used by several at once: codecs on several threads each, one problem, searches on several threads
// each, one calibrated codec, one encoder that serves one call at a time. The thread sanitizer runs it (preset tsan); here results are compared.
#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "orbitsplit/orbitsplit.hpp"
#include "small_problem.hpp"

using namespace orbitsplit;

namespace {

using Bytes = std::vector<std::byte>;

constexpr int callers = 4;

// Runs `work(caller)` on several threads, which begin together, and returns how many calls were right.
int right_calls(const std::function<bool(int)>& work) {
    std::atomic<int> ready = 0;
    std::atomic<int> right = 0;
    std::vector<std::thread> threads;
    for (int caller = 0; caller < callers; ++caller)
        threads.emplace_back([&, caller] {
            for (++ready; ready < callers;) std::this_thread::yield();
            right += work(caller) ? 1 : 0;
        });
    for (std::thread& thread : threads) thread.join();
    return right;
}

Bytes array_of(std::size_t elements) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> values(elements);
    for (float& value : values) value = normal(random);
    Bytes bytes(4 * elements);
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
}

// Streams enough for all threads.
constexpr std::array<std::int64_t, 2> shape = {1200, 64};

CalibratedCodec calibrated() {
    CalibratedParameters p;
    p.key = {.codebook = 9, .cut = 5, .level = 2};
    p.step.assign(64, 0.5F);
    p.hadamard = 64;
    p.tables.resize(1);
    for (int code = -6; code <= 6; ++code) p.tables[0][static_cast<std::uint8_t>(code)] = 18;
    p.table_of_channel.assign(64, 0);
    return CalibratedCodec(p);
}

void test_codecs_on_several_threads() {
    const Bytes array = array_of(shape[0] * shape[1]);
    for (const char* name : {"raw", "bf16", "int8", "int4:16", "topk:0.1", "lossless_bf16"}) {
        const Codec codec = parse_codec(name);
        const Bytes expected = compress(array, DType::float32, shape, codec);
        const Bytes decoded = decompress(expected).data;
        CHECK(right_calls([&](int caller) {
                  const int threads = 1 + caller;
                  return compress(array, DType::float32, shape, codec, threads) == expected &&
                         decompress(expected, {}, threads).data == decoded;
              }) == callers);
    }
}

void test_a_calibrated_codec_is_shared() {
    const Bytes array = array_of(shape[0] * shape[1]);
    const CalibratedCodec codec = calibrated();
    const Bytes expected = compress(array, DType::float32, shape, codec);
    const Bytes decoded = decompress(expected, codec).data;
    CHECK(right_calls([&](int caller) {
              Encoder encoder(DType::float32, shape, codec, 1 + caller);
              Decoder decoder(DType::float32, shape, codec, 1 + caller);
              Bytes frame(encoder.frame_bytes());
              frame.resize(encoder.encode(frame, array));
              Bytes back(decoder.data_bytes());
              decoder.decode(back, frame);
              return frame == expected && back == decoded;
          }) == callers);
}

// Threads that share an encoder against its contract: each call is right or refused, and one of them at least is right.
void test_an_encoder_refuses_a_second_call() {
    const Bytes array = array_of(shape[0] * shape[1]);
    const Codec codec = parse_codec("lossless_bf16");
    const Bytes expected = compress(array, DType::float32, shape, codec);
    Encoder encoder(DType::float32, shape, codec);
    std::atomic<int> wrong = 0;
    const int right = right_calls([&](int) {
        bool is_right = false;
        for (int call = 0; call < 5; ++call) {
            Bytes frame(encoder.frame_bytes());
            try {
                frame.resize(encoder.encode(frame, array));
                is_right = true;
                if (frame != expected) ++wrong;
            } catch (const BusyError&) {
            }
        }
        return is_right;
    });
    CHECK(right > 0 && wrong == 0);
}

void test_a_problem_is_shared() {
    const Problem problem = small_problem();
    const Solution expected = solve(problem);
    CHECK(expected.status == Status::optimal);
    CHECK(right_calls([&](int) {
              const Solution found = solve(problem);
              return found.stages == expected.stages && found.objective_s == expected.objective_s &&
                     evaluate(problem, found.stages).is_feasible;
          }) == callers);
}

// 20 layers on 8 nodes of which each takes at most 4, in any order: its bounds are large enough to be divided, those of 16
// layers on 7 nodes are not.
Problem free_problem() {
    constexpr std::size_t layers = 20;
    constexpr std::size_t nodes = 8;
    std::mt19937 random(1);
    const auto numbers = [&](std::size_t count) {
        std::vector<double> made(count);
        for (double& number : made) number = 1 + static_cast<double>(random() % 1000) / 100;
        return made;
    };
    Problem problem;
    problem.layers.assign(layers, "layer");
    for (std::size_t n = 0; n < nodes; ++n)
        problem.nodes.push_back({.name = "node " + std::to_string(n), .memory_bytes = 4});
    problem.layer_memory_bytes.assign(layers, 1);
    problem.layer_time_s = numbers(nodes * layers);
    problem.cut_bytes = numbers(layers - 1);
    problem.bandwidth_bytes_per_s = numbers(nodes * nodes);
    problem.latency_s = numbers(nodes * nodes);
    for (std::size_t n = 0; n < nodes; ++n) problem.bandwidth_bytes_per_s[n * (nodes + 1)] = 0;
    problem.levels = {{.name = "raw"}, {.name = "half", .ratio = 2}};
    problem.loss = numbers((layers - 1) * 2);
    problem.micro_batches = 8;
    problem.order = Order::free;
    return problem;
}

void test_searches_on_several_threads() {
    const PreparedProblem problem(free_problem());
    const Solution expected = solve(problem);
    CHECK(expected.status == Status::optimal && expected.stages.size() >= 5);
    CHECK(right_calls([&](int caller) {
              const Solution found = solve(problem, {.threads = 1 + caller});
              return found.stages == expected.stages && found.objective_s == expected.objective_s &&
                     found.lower_bound_s == expected.lower_bound_s && found.labels == expected.labels;
          }) == callers);
}

void test_products_on_several_threads() {
    constexpr std::int64_t rows = 512;
    constexpr std::int64_t columns = 64;
    const Bytes bytes = array_of(rows * columns);
    std::vector<float> values(rows * columns);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    Bytes data(quantized_bytes(WeightFormat::int4, rows, columns));
    quantize(WeightFormat::int4, values, rows, columns, data, {}, 3);
    const WeightMatrix matrix{WeightFormat::int4, rows, columns, data};
    const auto product = [&](int threads) {
        std::vector<float> y(rows);
        Bytes scratch(product_scratch_bytes(1, columns));
        multiply(matrix, std::span(values).first(columns), 1, y, scratch, threads);
        return y;
    };
    const std::vector<float> expected = product(1);
    CHECK(right_calls([&](int caller) { return product(1 + caller) == expected; }) == callers);
}

// The set may be selected while codecs run: frames do not depend on it.
void test_the_instruction_set_is_selected_meanwhile() {
    const Bytes array = array_of(shape[0] * shape[1]);
    const Codec codec = parse_codec("int8");
    const Bytes expected = compress(array, DType::float32, shape, codec);
    const std::vector<std::string> sets = isas();
    const std::string before(isa());
    CHECK(right_calls([&](int caller) {
              set_isa(sets[static_cast<std::size_t>(caller) % sets.size()]);
              return compress(array, DType::float32, shape, codec, 2) == expected;
          }) == callers);
    set_isa(before);
}

}  // namespace

int main() {
    test_codecs_on_several_threads();
    test_a_calibrated_codec_is_shared();
    test_an_encoder_refuses_a_second_call();
    test_a_problem_is_shared();
    test_searches_on_several_threads();
    test_products_on_several_threads();
    test_the_instruction_set_is_selected_meanwhile();
    return failures;
}
