// The C interface: known values and errors of every function, frames of a codebook that Python wrote, structs of other
// versions, and that calls of an encoder allocate nothing. tests/consumer/c is compiled as C.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "counted_allocations.hpp"
#include "orbitsplit/c_api.h"

namespace {

using Bytes = std::vector<unsigned char>;

orbitsplit_error error;

// The call fails with this status and a message that contains the text.
#define CHECK_FAILS(call, expected, text)                    \
    do {                                                     \
        error = {};                                          \
        const orbitsplit_status found = (call);              \
        CHECK(found == (expected) && error.status == found); \
        CHECK_MESSAGE(text);                                 \
    } while (false)

#define CHECK_MESSAGE(text)                                                                    \
    do {                                                                                       \
        if (std::strstr(error.message, text) == nullptr) {                                     \
            ++failures;                                                                        \
            std::cerr << __FILE__ << ':' << __LINE__ << ": got \"" << error.message << "\"\n"; \
        }                                                                                      \
    } while (false)

#define CHECK_OK(call) CHECK((call) == ORBITSPLIT_OK)

const double memory[] = {2e9, 2e9};
const double layer_memory[] = {1e9, 1e9, 1e9};
const double times[] = {1, 1, 1, 2, 2, 2};
const double cut_bytes[] = {4e6, 4e6};
const double bandwidth[] = {0, 1e6, 1e6, 0};
const double latency[] = {0, 0.5, 0.5, 0};
const orbitsplit_level levels[] = {{"raw", 1, 0, 0}, {"int8", 4, 0, 0}};
const double loss[] = {0, 0.1, 0, 0.1};
const double budget = 0.1;

// The plan [a b | c] takes 2 + 1 (a quarter of 4 s on the link) + 0.5 + 2 seconds.
orbitsplit_problem_arrays two_nodes() {
    orbitsplit_problem_arrays arrays{};
    arrays.struct_bytes = sizeof arrays;
    arrays.layers = 3;
    arrays.nodes = 2;
    arrays.levels = 2;
    arrays.memory_bytes = memory;
    arrays.layer_memory_bytes = layer_memory;
    arrays.layer_time_s = times;
    arrays.cut_bytes = cut_bytes;
    arrays.bandwidth_bytes_per_s = bandwidth;
    arrays.latency_s = latency;
    arrays.level = levels;
    arrays.loss = loss;
    arrays.loss_budget = &budget;
    return arrays;
}

orbitsplit_problem* problem_of(const orbitsplit_problem_arrays& arrays) {
    orbitsplit_problem* problem = nullptr;
    CHECK_OK(orbitsplit_problem_new(&arrays, &problem, &error));
    return problem;
}

void test_version() {
    CHECK(std::string(orbitsplit_version()).find('.') != std::string::npos);
    CHECK_OK(orbitsplit_check_version(ORBITSPLIT_C_API_MAJOR, ORBITSPLIT_C_API_MINOR, &error));
    CHECK_FAILS(orbitsplit_check_version(ORBITSPLIT_C_API_MAJOR, 999, &error), ORBITSPLIT_WRONG_VERSION,
                "the header has version 0.999 of the C interface, the library has 0.1");
    CHECK_FAILS(orbitsplit_check_version(9, 0, &error), ORBITSPLIT_WRONG_VERSION, "version 9.0");
    CHECK(orbitsplit_check_version(9, 0, nullptr) == ORBITSPLIT_WRONG_VERSION);
}

void test_solve_and_evaluate() {
    orbitsplit_problem* problem = problem_of(two_nodes());
    orbitsplit_solution* solution = nullptr;
    CHECK_OK(orbitsplit_solve(problem, nullptr, &solution, &error));
    orbitsplit_solution_info info{};
    info.struct_bytes = sizeof info;
    CHECK_OK(orbitsplit_solution_read(solution, &info, &error));
    CHECK(info.status == ORBITSPLIT_OPTIMAL && info.objective_s == 5.5 && info.loss == 0.1);
    CHECK(info.stage_count == 2 && info.stages[0].stop == 2 && info.stages[0].level == 1 &&
          info.stages[1].level == ORBITSPLIT_NO_LEVEL && info.stages[1].weight_level == ORBITSPLIT_NO_LEVEL);
    CHECK(std::string(info.reason).empty());

    orbitsplit_evaluation* evaluation = nullptr;
    CHECK_OK(orbitsplit_evaluate(problem, info.stages, info.stage_count, &evaluation, &error));
    orbitsplit_evaluation_info score{};
    score.struct_bytes = sizeof score;
    CHECK_OK(orbitsplit_evaluation_read(evaluation, &score, &error));
    CHECK(score.objective_s == 5.5 && score.stage_s.count == 2 && score.stage_s.numbers[0] == 2 &&
          score.link_s.count == 1 && score.link_s.numbers[0] == 1 && score.violation_count == 0);
    orbitsplit_evaluation_free(evaluation);

    const orbitsplit_stage one{0, 0, 3, ORBITSPLIT_NO_LEVEL, ORBITSPLIT_NO_LEVEL};
    CHECK_OK(orbitsplit_evaluate(problem, &one, 1, &evaluation, &error));
    CHECK_OK(orbitsplit_evaluation_read(evaluation, &score, &error));
    CHECK(score.violation_count == 1 && std::strstr(score.violations[0], "3 GB") != nullptr);
    orbitsplit_evaluation_free(evaluation);
    orbitsplit_solution_free(solution);

    // An incumbent, and every option that has a value of its own.
    orbitsplit_solve_options options{};
    options.struct_bytes = sizeof options;
    options.objective = ORBITSPLIT_THROUGHPUT;
    options.max_nodes = 1;
    options.incumbent = &one;
    options.incumbent_stages = 1;
    options.threads = 2;
    CHECK_OK(orbitsplit_solve(problem, &options, &solution, &error));
    CHECK_OK(orbitsplit_solution_read(solution, &info, &error));
    CHECK(info.status == ORBITSPLIT_INFEASIBLE && info.stage_count == 0 && std::isinf(info.objective_s) &&
          std::string(info.reason).size() > 10);
    orbitsplit_solution_free(solution);
    orbitsplit_problem_free(problem);
}

// What stages take in addition to their layers; the fields are at the end of the struct, and an older program has none.
void test_stage_overheads() {
    const double overheads[] = {0.5, 0.25};
    const double decode_times[] = {1, 1, 1, 1, 1, 1};
    const double decode_bytes[] = {0, 0};
    orbitsplit_problem_arrays arrays = two_nodes();
    arrays.stage_overhead_s = overheads;
    arrays.stage_decode_overhead_s = overheads;
    arrays.layer_decode_time_s = decode_times;
    arrays.cut_decode_bytes = decode_bytes;
    arrays.new_tokens = 2;
    const auto objective_s = [&arrays] {
        orbitsplit_problem* problem = problem_of(arrays);
        orbitsplit_solution* solution = nullptr;
        CHECK_OK(orbitsplit_solve(problem, nullptr, &solution, &error));
        orbitsplit_solution_info info{};
        info.struct_bytes = sizeof info;
        CHECK_OK(orbitsplit_solution_read(solution, &info, &error));
        const double found = info.objective_s;
        orbitsplit_solution_free(solution);
        orbitsplit_problem_free(problem);
        return found;
    };
    // The prefill of two_nodes(), and a step of three layers, one link and the return of 0.5 s each.
    CHECK(objective_s() == 5.5 + 0.75 + 4 + 0.75);
    arrays.struct_bytes = offsetof(orbitsplit_problem_arrays, stage_overhead_s);
    CHECK(objective_s() == 5.5 + 4);
    const double negative[] = {0, -1};
    arrays = two_nodes();
    arrays.stage_overhead_s = negative;
    orbitsplit_problem* problem = nullptr;
    CHECK_FAILS(orbitsplit_problem_new(&arrays, &problem, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "stage_overhead_s[1] is -1, must be at least 0");
}

// 40 layers on 20 nodes that differ, in any order: far from solved when the search first asks whether it shall stop.
void test_cancel() {
    constexpr std::size_t layers = 40;
    constexpr std::size_t nodes = 20;
    unsigned state = 1;
    const auto next = [&] { return 1 + static_cast<double>((state = state * 1664525U + 1013904223U) >> 20); };
    std::vector<double> numbers(nodes * nodes + nodes * layers);
    std::generate(numbers.begin(), numbers.end(), next);
    const std::vector<double> room(nodes, 4);
    const std::vector<double> ones(layers, 1);
    const std::vector<double> none(layers, 0);
    const std::vector<double> no_latency(nodes * nodes, 0);
    const orbitsplit_level raw{"raw", 0, 0, 0};
    orbitsplit_problem_arrays arrays{};
    arrays.struct_bytes = sizeof arrays;
    arrays.layers = layers;
    arrays.nodes = nodes;
    arrays.levels = 1;
    arrays.order = ORBITSPLIT_ORDER_FREE;
    arrays.memory_bytes = room.data();
    arrays.layer_memory_bytes = ones.data();
    arrays.layer_time_s = numbers.data() + nodes * nodes;
    arrays.cut_bytes = ones.data();
    arrays.bandwidth_bytes_per_s = numbers.data();
    arrays.latency_s = no_latency.data();
    arrays.level = &raw;
    arrays.loss = none.data();
    arrays.micro_batches = 8;
    orbitsplit_problem* problem = problem_of(arrays);
    int calls = 0;
    orbitsplit_solve_options options{};
    options.struct_bytes = sizeof options;
    options.stop_context = &calls;
    options.stop = [](void* context) {
        ++*static_cast<int*>(context);
        return 1;
    };
    orbitsplit_solution* solution = nullptr;
    CHECK_OK(orbitsplit_solve(problem, &options, &solution, &error));
    orbitsplit_solution_info info{};
    info.struct_bytes = sizeof info;
    CHECK_OK(orbitsplit_solution_read(solution, &info, &error));
    CHECK(calls > 0 && (info.status == ORBITSPLIT_UNKNOWN || info.status == ORBITSPLIT_FEASIBLE));
    CHECK(std::string(info.reason).size() > 10);
    orbitsplit_solution_free(solution);
    orbitsplit_problem_free(problem);
}

void test_invalid_problems() {
    orbitsplit_problem* problem = nullptr;
    orbitsplit_problem_arrays arrays = two_nodes();
    const auto make = [&] { return orbitsplit_problem_new(&arrays, &problem, &error); };
    CHECK_FAILS(orbitsplit_problem_new(nullptr, &problem, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "arrays is NULL");
    CHECK_FAILS(orbitsplit_problem_new(&arrays, nullptr, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "problem is NULL");
    arrays.layer_time_s = nullptr;
    CHECK_FAILS(make(), ORBITSPLIT_INVALID_ARGUMENT, "layer_time_s is NULL");
    arrays = two_nodes();
    arrays.layers = 0;
    CHECK_FAILS(make(), ORBITSPLIT_INVALID_ARGUMENT, "the problem has 0 layers and 2 nodes");
    arrays = two_nodes();
    arrays.nodes = std::numeric_limits<std::size_t>::max() / 8;
    CHECK_FAILS(make(), ORBITSPLIT_INVALID_ARGUMENT, "an array of the problem has more than");
    arrays = two_nodes();
    arrays.order = 2;
    CHECK_FAILS(make(), ORBITSPLIT_INVALID_ARGUMENT, "order is 2, it must be 0 or 1");
    arrays = two_nodes();
    const double negative[] = {-1, 1, 1, 2, 2, 2};
    arrays.layer_time_s = negative;
    CHECK_FAILS(make(), ORBITSPLIT_INVALID_ARGUMENT, "layer_time_s");
    arrays = two_nodes();
    arrays.struct_bytes = 0;
    CHECK_FAILS(make(), ORBITSPLIT_WRONG_VERSION, "struct_bytes of arrays is 0");
    CHECK(problem == nullptr);

    problem = problem_of(two_nodes());
    orbitsplit_solution* solution = nullptr;
    orbitsplit_solve_options options{};
    options.struct_bytes = sizeof options;
    options.objective = 4;
    CHECK_FAILS(orbitsplit_solve(problem, &options, &solution, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "objective is 4, it must be from 0 to 3");
    options.objective = ORBITSPLIT_LATENCY;
    options.gap = -1;
    CHECK_FAILS(orbitsplit_solve(problem, &options, &solution, &error), ORBITSPLIT_INVALID_ARGUMENT, "gap");
    options.gap = 0;
    options.threads = 257;
    CHECK_FAILS(orbitsplit_solve(problem, &options, &solution, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "threads is 257, it must be from 1 to 256");
    CHECK_FAILS(orbitsplit_solve(nullptr, nullptr, &solution, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "problem is NULL");
    const orbitsplit_stage wrong{0, 0, 99, 0, 0};
    orbitsplit_evaluation* evaluation = nullptr;
    CHECK_FAILS(orbitsplit_evaluate(problem, &wrong, 1, &evaluation, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "99");
    CHECK(solution == nullptr && evaluation == nullptr);
    orbitsplit_problem_free(problem);
    orbitsplit_problem_free(nullptr);
    orbitsplit_solution_free(nullptr);
    orbitsplit_evaluation_free(nullptr);
}

// A program with a shorter struct, or a longer one whose additional fields it does not use.
void test_structs_of_other_versions() {
    struct Longer {
        orbitsplit_solve_options known;
        double later;
    } options{};
    options.known.struct_bytes = sizeof options;
    options.known.max_nodes = 2;
    orbitsplit_problem* problem = problem_of(two_nodes());
    orbitsplit_solution* solution = nullptr;
    CHECK_OK(orbitsplit_solve(problem, &options.known, &solution, &error));
    options.later = 1;
    CHECK_FAILS(orbitsplit_solve(problem, &options.known, &solution, &error), ORBITSPLIT_WRONG_VERSION,
                "options has a field at byte");
    orbitsplit_solution_info info;
    std::memset(&info, 0x55, sizeof info);
    info.struct_bytes = offsetof(orbitsplit_solution_info, lower_bound_s);
    CHECK_OK(orbitsplit_solution_read(solution, &info, &error));
    CHECK(info.objective_s == 5.5 && info.labels == 0x5555555555555555U);
    info.struct_bytes = 1 << 20;
    CHECK_FAILS(orbitsplit_solution_read(solution, &info, &error), ORBITSPLIT_WRONG_VERSION,
                "struct_bytes of info");
    orbitsplit_solution_free(solution);
    orbitsplit_problem_free(problem);
}

orbitsplit_codec* codec_of(const char* text) {
    orbitsplit_codec* codec = nullptr;
    CHECK_OK(orbitsplit_codec_parse(text, &codec, &error));
    return codec;
}

void test_codecs() {
    const orbitsplit_array_type type{ORBITSPLIT_FLOAT32, 2, {3, 64}};
    std::vector<float> x(192);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(std::sin(static_cast<double>(i)));
    for (const char* name : {"raw", "bf16", "int8", "int8:8", "int4", "topk:0.1", "lossless_bf16"}) {
        orbitsplit_codec* codec = codec_of(name);
        std::size_t bound = 0;
        CHECK_OK(orbitsplit_frame_bytes(codec, &type, &bound, &error));
        Bytes frame(bound);
        std::size_t size = 0;
        CHECK_OK(orbitsplit_compress(codec, &type, x.data(), 4 * x.size(), nullptr, frame.data(),
                                     frame.size(), &size, &error));
        CHECK(size > 0 && size <= bound);
        orbitsplit_frame_info info{};
        info.struct_bytes = sizeof info;
        CHECK_OK(orbitsplit_inspect(frame.data(), size, 0, &info, &error));
        CHECK(info.type.dtype == ORBITSPLIT_FLOAT32 && info.type.rank == 2 && info.type.shape[0] == 3 &&
              info.type.shape[1] == 64 && info.data_bytes == 768 && info.codebook == 0);
        CHECK_FAILS(orbitsplit_inspect(frame.data(), size, 767, &info, &error), ORBITSPLIT_CORRUPT_FRAME,
                    "declares an array of 768 bytes, the limit is 767");
        std::vector<float> y(x.size());
        CHECK_OK(orbitsplit_decompress(nullptr, frame.data(), size, nullptr, y.data(), 4 * y.size(), &error));
        if (std::string(name) == "raw") CHECK(x == y);
        if (std::string(name) == "int8")
            for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::fabs(x[i] - y[i]) < 0.005);

        orbitsplit_encoder* encoder = nullptr;
        orbitsplit_decoder* decoder = nullptr;
        CHECK_OK(orbitsplit_encoder_new(codec, &type, 0, &encoder, &error));
        CHECK_OK(orbitsplit_decoder_new(nullptr, 0, &type, 0, &decoder, &error));
        orbitsplit_codec_free(codec);
        Bytes again(bound);
        std::size_t again_size = 0;
        std::vector<float> z(x.size());
        const std::size_t before = counted::allocations;
        CHECK_OK(orbitsplit_encode(encoder, x.data(), 4 * x.size(), again.data(), again.size(), &again_size,
                                   &error));
        CHECK_OK(orbitsplit_decode(decoder, again.data(), again_size, z.data(), 4 * z.size(), &error));
        CHECK(counted::allocations == before);
        CHECK(again_size == size &&
              std::equal(again.begin(), again.begin() + static_cast<long>(size), frame.begin()));
        CHECK(z == y);
        frame[size - 1] ^= 1;
        CHECK_FAILS(orbitsplit_decode(decoder, frame.data(), size, z.data(), 4 * z.size(), &error),
                    ORBITSPLIT_CORRUPT_FRAME, "frame");
        CHECK_FAILS(
            orbitsplit_decompress(nullptr, frame.data(), size, nullptr, z.data(), 4 * z.size(), &error),
            ORBITSPLIT_CORRUPT_FRAME, "frame");
        orbitsplit_encoder_free(encoder);
        orbitsplit_decoder_free(decoder);
    }
}

void test_invalid_codecs() {
    orbitsplit_codec* codec = nullptr;
    CHECK_FAILS(orbitsplit_codec_parse("gzip", &codec, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "codec \"gzip\" is unknown; valid are");
    CHECK_FAILS(orbitsplit_codec_parse(nullptr, &codec, &error), ORBITSPLIT_INVALID_ARGUMENT, "text is NULL");
    const std::string longest(5000, 'x');
    CHECK_FAILS(orbitsplit_codec_parse(longest.c_str(), &codec, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "xxx...");
    CHECK(std::strlen(error.message) == sizeof error.message - 1);
    std::string accents = "y";
    for (int i = 0; i < 400; ++i) accents += "\xC3\xA9";
    CHECK_FAILS(orbitsplit_codec_parse(accents.c_str(), &codec, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "\xA9...");
    codec = codec_of("raw");
    std::size_t size = 0;
    orbitsplit_array_type type{3, 1, {4}};
    CHECK_FAILS(orbitsplit_frame_bytes(codec, &type, &size, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "dtype is 3");
    type = {ORBITSPLIT_FLOAT32, 9, {4}};
    CHECK_FAILS(orbitsplit_frame_bytes(codec, &type, &size, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "rank is 9");
    type = {ORBITSPLIT_FLOAT32, 1, {4}};
    unsigned char frame[64];
    const float x[4] = {};
    CHECK_FAILS(orbitsplit_compress(codec, &type, x, 16, nullptr, frame, 9, &size, &error),
                ORBITSPLIT_INVALID_ARGUMENT, "the buffer has 9 bytes, the frame may need 64");
    CHECK_FAILS(orbitsplit_compress(codec, &type, nullptr, 16, nullptr, frame, 64, &size, &error),
                ORBITSPLIT_INVALID_ARGUMENT, "data is NULL");
    orbitsplit_execution execution{};
    execution.struct_bytes = sizeof execution;
    execution.threads = 300;
    CHECK_FAILS(orbitsplit_compress(codec, &type, x, 16, &execution, frame, 64, &size, &error),
                ORBITSPLIT_INVALID_ARGUMENT, "threads is 300, it must be from 1 to 256");
    CHECK_FAILS(orbitsplit_inspect("OSPF", 4, 0, nullptr, &error), ORBITSPLIT_CORRUPT_FRAME,
                "frame has 4 bytes");
    orbitsplit_codec_free(codec);
    orbitsplit_codec_free(nullptr);
}

// A call that is stopped, and the same call again.
void test_stop() {
    orbitsplit_codec* codec = codec_of("int8");
    const orbitsplit_array_type type{ORBITSPLIT_FLOAT32, 2, {64, 4096}};
    const std::vector<float> x(64 * 4096, 1.0F);
    std::size_t bound = 0;
    CHECK_OK(orbitsplit_frame_bytes(codec, &type, &bound, &error));
    Bytes frame(bound);
    orbitsplit_execution execution{};
    execution.struct_bytes = sizeof execution;
    execution.threads = 2;
    execution.stop = [](void*) { return 1; };
    std::size_t size = 0;
    CHECK_FAILS(orbitsplit_compress(codec, &type, x.data(), 4 * x.size(), &execution, frame.data(), bound,
                                    &size, &error),
                ORBITSPLIT_STOPPED, "stopped at the caller's request");
    execution.stop = nullptr;
    CHECK_OK(orbitsplit_compress(codec, &type, x.data(), 4 * x.size(), &execution, frame.data(), bound, &size,
                                 &error));
    orbitsplit_codec_free(codec);
}

Bytes bytes_of_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return Bytes(std::istreambuf_iterator<char>(file), {});
}

Bytes bytes_of_hex(const std::string& hex) {
    Bytes bytes;
    for (std::size_t i = 0; i < hex.size(); i += 2)
        bytes.push_back(static_cast<unsigned char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    return bytes;
}

// Frames that Python made with the codecs of the same file, byte for byte, and what they decode to.
void test_frames_of_python(orbitsplit_codebook* book, const std::string& path) {
    std::ifstream lines(path);
    int cut = 0;
    int level = 0;
    std::int64_t rows = 0;
    std::string x_hex;
    std::string frame_hex;
    std::string decoded_hex;
    int count = 0;
    while (lines >> cut >> level >> rows >> x_hex >> frame_hex >> decoded_hex) {
        ++count;
        const Bytes x = bytes_of_hex(x_hex);
        const Bytes frame = bytes_of_hex(frame_hex);
        orbitsplit_codec* codec = nullptr;
        CHECK_OK(orbitsplit_codebook_codec(book, cut, level, &codec, &error));
        const std::int64_t width = orbitsplit_codec_width(codec);
        const orbitsplit_array_type type{ORBITSPLIT_FLOAT32, 2, {rows, 8}};
        std::size_t bound = 0;
        CHECK_OK(orbitsplit_frame_bytes(codec, &type, &bound, &error));
        Bytes made(bound);
        std::size_t size = 0;
        CHECK_OK(orbitsplit_compress(codec, &type, x.data(), x.size(), nullptr, made.data(), bound, &size,
                                     &error));
        made.resize(size);
        CHECK(made == frame);
        orbitsplit_decoder* decoder = nullptr;
        CHECK_OK(orbitsplit_decoder_new(&codec, 1, &type, 0, &decoder, &error));
        orbitsplit_codec_free(codec);  // the decoder keeps what it needs
        Bytes decoded(x.size());
        CHECK_OK(
            orbitsplit_decode(decoder, frame.data(), frame.size(), decoded.data(), decoded.size(), &error));
        CHECK(decoded == bytes_of_hex(decoded_hex));
        orbitsplit_decoder_free(decoder);
        orbitsplit_frame_info info{};
        info.struct_bytes = sizeof info;
        CHECK_OK(orbitsplit_inspect(frame.data(), frame.size(), 0, &info, &error));
        CHECK(width == (info.codec == ORBITSPLIT_CALIBRATED ? 8 : 0));
        if (info.codec != ORBITSPLIT_CALIBRATED) continue;
        CHECK(info.codebook == orbitsplit_codebook_id(book) && info.cut == cut && info.level == level);
        CHECK_FAILS(orbitsplit_decompress(nullptr, frame.data(), frame.size(), nullptr, decoded.data(),
                                          decoded.size(), &error),
                    ORBITSPLIT_CORRUPT_FRAME, "none was given");
    }
    CHECK(count == 14);
}

void test_codebook(const std::string& folder) {
    orbitsplit_codebook* book = nullptr;
    CHECK_OK(orbitsplit_codebook_open((folder + "/small.safetensors").c_str(), &book, &error));
    CHECK(orbitsplit_codebook_id(book) == 0x7656129a5cb57922U);
    CHECK(orbitsplit_codebook_cut_count(book) == 2 && orbitsplit_codebook_cut(book, 0) == 2 &&
          orbitsplit_codebook_cut(book, 1) == 11 && orbitsplit_codebook_cut(book, 2) == -1);
    CHECK(orbitsplit_codebook_level_count(book, 2) == 3 && orbitsplit_codebook_level_count(book, 11) == 4 &&
          orbitsplit_codebook_level_count(book, 3) == 0);
    orbitsplit_level_info info{};
    info.struct_bytes = sizeof info;
    CHECK_OK(orbitsplit_codebook_level(book, 11, 1, &info, &error));
    CHECK(std::string(info.name) == "hadamard \xC3\xA9" && info.bits_per_element == 5.5 &&
          info.loss == 0.375 && info.loss_error == 1e-05 && info.encode_s_per_byte == 1.5e-10);
    orbitsplit_codec* codec = nullptr;
    CHECK_FAILS(orbitsplit_codebook_codec(book, 3, 0, &codec, &error), ORBITSPLIT_NOT_FOUND,
                "cut 3 was not calibrated");
    CHECK_FAILS(orbitsplit_codebook_codec(book, 2, 3, &codec, &error), ORBITSPLIT_NOT_FOUND,
                "cut 2 has levels 0 to 2, not 3");
    test_frames_of_python(book, folder + "/small.txt");
    orbitsplit_codebook_free(book);
    // Of version 2, with matrices in float16.
    CHECK_OK(orbitsplit_codebook_open((folder + "/half.safetensors").c_str(), &book, &error));
    CHECK(orbitsplit_codebook_id(book) == 0x731c5f2a6829895dU);
    test_frames_of_python(book, folder + "/half.txt");
    orbitsplit_codebook_free(book);
    // And one whose inverses are computed from their matrices.
    CHECK_OK(orbitsplit_codebook_open((folder + "/follows.safetensors").c_str(), &book, &error));
    CHECK(orbitsplit_codebook_id(book) == 0x8a173f579734f918U);
    test_frames_of_python(book, folder + "/follows.txt");
    orbitsplit_codebook_free(book);
    orbitsplit_codebook_free(nullptr);
    CHECK(orbitsplit_codebook_id(nullptr) == 0 && orbitsplit_codebook_cut_count(nullptr) == 0);
    CHECK(orbitsplit_codec_width(nullptr) == 0);
}

void test_invalid_codebooks(const std::string& folder) {
    orbitsplit_codebook* book = nullptr;
    CHECK_FAILS(orbitsplit_codebook_open("/nowhere/book", &book, &error), ORBITSPLIT_FILE_ERROR,
                "/nowhere/book cannot be read: ");
    CHECK_FAILS(orbitsplit_codebook_open(folder.c_str(), &book, &error), ORBITSPLIT_FILE_ERROR,
                "cannot be read: ");
    CHECK_FAILS(orbitsplit_codebook_open((folder + "/small.txt").c_str(), &book, &error),
                ORBITSPLIT_INVALID_FILE, "is not a valid codebook");
    const Bytes good = bytes_of_file(folder + "/small.safetensors");
    const auto parse = [&](const Bytes& bytes) {
        return orbitsplit_codebook_parse(bytes.data(), bytes.size(), &book, &error);
    };
    CHECK_FAILS(parse({}), ORBITSPLIT_INVALID_FILE, "it has 0 bytes");
    for (std::size_t i = 0; i < good.size(); i += 1 + i / 64) {
        Bytes bad = good;
        bad[i] ^= 4;
        CHECK(parse(bad) == ORBITSPLIT_INVALID_FILE);
        bad = good;
        bad.resize(i);
        CHECK(parse(bad) == ORBITSPLIT_INVALID_FILE);
    }
    Bytes longer = good;
    longer.push_back(0);
    CHECK_FAILS(parse(longer), ORBITSPLIT_INVALID_FILE, "do not cover its data");
    const auto header = [&](const std::string& text) {
        Bytes bytes(8);
        const std::uint64_t size = text.size();
        std::memcpy(bytes.data(), &size, 8);
        bytes.insert(bytes.end(), text.begin(), text.end());
        return parse(bytes);
    };
    CHECK_FAILS(header("{"), ORBITSPLIT_INVALID_FILE, "a member without a key at byte 1");
    CHECK_FAILS(header("{}"), ORBITSPLIT_INVALID_FILE, "it has no metadata");
    CHECK_FAILS(header("[]"), ORBITSPLIT_INVALID_FILE, "its header is not an object");
    CHECK_FAILS(header(R"({"a":1,"a":2})"), ORBITSPLIT_INVALID_FILE, "an object with a key twice");
    CHECK_FAILS(header(R"({"a":1e999})"), ORBITSPLIT_INVALID_FILE, "beyond the range of float64");
    CHECK_FAILS(header(R"({"a":"\ud800"})"), ORBITSPLIT_INVALID_FILE, "half a character");
    CHECK_FAILS(header(std::string(100, '[')), ORBITSPLIT_INVALID_FILE, "more than 32 levels");
    CHECK_FAILS(header(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})"), ORBITSPLIT_INVALID_FILE,
                "tensor \"a\" is larger than the file");
    CHECK_FAILS(header(R"({"a":{"dtype":"F99","shape":[],"data_offsets":[0,0]}})"), ORBITSPLIT_INVALID_FILE,
                "dtype \"F99\"");
    CHECK_FAILS(header(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0.5,0]}})"), ORBITSPLIT_INVALID_FILE,
                "is not a whole number");
    CHECK(book == nullptr);
}

void test_weights() {
    for (const int format : {ORBITSPLIT_WEIGHT_INT8, ORBITSPLIT_WEIGHT_INT4, ORBITSPLIT_WEIGHT_INT5}) {
        std::vector<float> values(4 * 64);
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 16) - 8;
        std::size_t bytes = 0;
        CHECK_OK(orbitsplit_quantized_bytes(format, 4, 64, &bytes, &error));
        Bytes data(bytes);
        CHECK_OK(
            orbitsplit_quantize(format, 4, 64, values.data(), nullptr, nullptr, data.data(), bytes, &error));
        const orbitsplit_weight_matrix matrix{format, 0, 4, 64, data.data(), bytes};
        std::vector<float> row(64);
        CHECK_OK(orbitsplit_dequantize(&matrix, 2, 1, nullptr, row.data(), &error));
        for (std::size_t i = 0; i < row.size(); ++i) CHECK(std::fabs(row[i] - values[128 + i]) < 0.51);
        CHECK_FAILS(orbitsplit_dequantize(&matrix, 4, 1, nullptr, row.data(), &error),
                    ORBITSPLIT_INVALID_ARGUMENT, "row");
        std::size_t scratch_bytes = 0;
        CHECK_OK(orbitsplit_product_scratch_bytes(1, 64, &scratch_bytes, &error));
        Bytes scratch(scratch_bytes);
        const std::vector<float> x(64, 1.0F);
        float y[4] = {};
        const std::size_t before = counted::allocations;
        CHECK_OK(
            orbitsplit_multiply(&matrix, x.data(), 1, nullptr, scratch.data(), scratch_bytes, y, &error));
        CHECK(counted::allocations == before);
        double sum = 0;
        for (const float value : row) sum += value;
        CHECK(std::fabs(y[2] - sum) < 0.01);
        CHECK_FAILS(orbitsplit_multiply(&matrix, x.data(), 1, nullptr, scratch.data(), 3, y, &error),
                    ORBITSPLIT_INVALID_ARGUMENT, "scratch has 3 bytes");
        CHECK_FAILS(orbitsplit_multiply(&matrix, x.data(), -1, nullptr, scratch.data(), 3, y, &error),
                    ORBITSPLIT_INVALID_ARGUMENT, "");
    }
    std::size_t bytes = 0;
    CHECK_FAILS(orbitsplit_quantized_bytes(3, 4, 64, &bytes, &error), ORBITSPLIT_INVALID_ARGUMENT,
                "format is 3");
    CHECK_FAILS(orbitsplit_quantized_bytes(0, 4, 63, &bytes, &error), ORBITSPLIT_INVALID_ARGUMENT, "63");
}

}  // namespace

int main(int, char** argv) {
    test_version();
    test_solve_and_evaluate();
    test_stage_overheads();
    test_cancel();
    test_invalid_problems();
    test_structs_of_other_versions();
    test_codecs();
    test_invalid_codecs();
    test_stop();
    test_codebook(argv[1]);
    test_invalid_codebooks(argv[1]);
    test_weights();
    return failures;
}
