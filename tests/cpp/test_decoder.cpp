// A decoder's layer: the same bits on every instruction set of this processor, nothing allocated, and refusals.
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "orbitsplit/codec.hpp"
#include "orbitsplit/decoder.hpp"

using namespace orbitsplit;

namespace {

constexpr std::int64_t heads = 4;
constexpr std::int64_t kv_heads = 2;
constexpr std::int64_t head_size = 48;
constexpr std::int64_t hidden = 64;
constexpr std::int64_t width = 96;
constexpr std::int64_t tokens = 13;

// Distributions differ between standard libraries: values are made from bits.
std::vector<float> random_values(std::mt19937& random, std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values)
        value = std::ldexp(static_cast<float>(static_cast<std::int32_t>(random())), -31);
    return values;
}

// A layer with its memory.
class Owned {
  public:
    explicit Owned(std::uint32_t seed) : random_(seed) {
        layer.heads = heads;
        layer.kv_heads = kv_heads;
        layer.head_size = head_size;
        layer.attention_scale = 0.25F;
        layer.activation = Activation::gelu_tanh;
        layer.query = linear(heads * head_size, hidden);
        layer.key = linear(kv_heads * head_size, hidden);
        layer.value = linear(kv_heads * head_size, hidden);
        layer.output = linear(hidden, heads * head_size);
        layer.gate = linear(width, hidden);
        layer.up = linear(width, hidden);
        layer.down = linear(hidden, width);
        for (RmsNorm* norm :
             {&layer.before_attention, &layer.after_attention, &layer.before_mlp, &layer.after_mlp})
            *norm = {values(hidden), 1e-6F};
        layer.queries = {values(head_size), 1e-6F};
        layer.keys = {values(head_size), 1e-6F};
    }

    std::span<const float> values(std::int64_t count) {
        return memory_.emplace_back(random_values(random_, count));
    }

    DecoderLayer layer;

  private:
    QuantizedLinear linear(std::int64_t rows, std::int64_t columns) {
        auto& bytes = bytes_.emplace_back(quantized_bytes(WeightFormat::int8, rows, columns));
        quantize(WeightFormat::int8, values(rows * columns), rows, columns, bytes);
        return {{WeightFormat::int8, rows, columns, bytes}, values(rows)};
    }

    std::mt19937 random_;
    std::vector<std::vector<float>> memory_;
    std::vector<std::vector<std::byte>> bytes_;
};

struct Result {
    std::vector<float> queries, keys, values, y;
    bool operator==(const Result&) const = default;
};

// One new token in each of two sequences.
Result step(const DecoderLayer& layer, int threads) {
    constexpr std::int64_t rows = 2;
    std::mt19937 random(7);
    const std::vector<float> x = random_values(random, rows * hidden);
    const std::vector<float> cosines = random_values(random, rows * head_size);
    const std::vector<float> sines = random_values(random, rows * head_size);
    std::vector<float> keys = random_values(random, rows * kv_heads * tokens * head_size);
    std::vector<float> values = random_values(random, rows * kv_heads * tokens * head_size);
    Result result{std::vector<float>(rows * heads * head_size),
                  std::vector<float>(rows * kv_heads * head_size),
                  std::vector<float>(rows * kv_heads * head_size), std::vector<float>(rows * hidden)};
    std::vector<std::byte> scratch(decoder_scratch_bytes(layer, rows, tokens));
    project(layer, x, rows, cosines, sines, result.queries, result.keys, result.values, scratch, threads);
    for (std::size_t head = 0; head < rows * kv_heads; ++head) {
        const std::size_t last = ((head + 1) * tokens - 1) * head_size;
        std::memcpy(keys.data() + last, result.keys.data() + head * head_size, head_size * sizeof(float));
        std::memcpy(values.data() + last, result.values.data() + head * head_size, head_size * sizeof(float));
    }
    constexpr std::array<std::int64_t, 3> strides = {kv_heads * tokens * head_size, tokens * head_size,
                                                     head_size};
    const KeyValueCache cache{keys, values, strides, strides, rows, tokens};
    attend(layer, x, rows, result.queries, {&cache, 1}, result.y, scratch, threads);
    return result;
}

void test_bits_are_the_same_on_every_instruction_set() {
    const Owned owned(1);
    const std::string chosen(isa());
    set_isa("scalar");
    const Result expected = step(owned.layer, 1);
    for (const float value : expected.y) CHECK(std::isfinite(value));
    for (const std::string& name : isas()) {
        set_isa(name);
        for (const int threads : {1, 3}) CHECK(step(owned.layer, threads) == expected);
    }
    set_isa(chosen);
}

// What several caches of different lengths, sequences and strides give in one call is what each gives alone.
void test_caches_that_share_a_call() {
    Owned owned(4);
    const std::span<const float> memory = owned.values(8000);
    const auto cache = [&](std::int64_t sequences, std::int64_t length, std::int64_t new_tokens) {
        const std::array<std::int64_t, 3> of_keys = {length * head_size, 0, head_size};
        const std::array<std::int64_t, 3> of_values = {7, length * head_size, head_size};
        return KeyValueCache{memory, memory, of_keys, of_values, sequences, length, new_tokens};
    };
    std::vector<KeyValueCache> caches = {cache(1, 21, 1), cache(2, 9, 3), cache(1, 1, 1), cache(3, 30, 1)};
    const std::vector<std::uint8_t> visible = {1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1};
    caches.push_back(cache(1, 7, 2));
    caches.back().visible = visible;
    constexpr std::int64_t rows = 13;
    const std::span<const float> x = owned.values(rows * hidden);
    const std::span<const float> queries = owned.values(rows * heads * head_size);
    std::vector<std::byte> scratch(decoder_scratch_bytes(owned.layer, rows, 30));
    std::vector<float> expected(rows * hidden);
    std::size_t first = 0;
    for (const KeyValueCache& own : caches) {
        const auto count = static_cast<std::size_t>(own.sequences * own.new_tokens);
        attend(owned.layer, x.subspan(first * hidden, count * hidden), static_cast<std::int64_t>(count),
               queries.subspan(first * heads * head_size, count * heads * head_size), {&own, 1},
               std::span(expected).subspan(first * hidden, count * hidden), scratch);
        first += count;
    }
    const std::string chosen(isa());
    for (const std::string& name : isas()) {
        set_isa(name);
        for (const int threads : {1, 3}) {
            std::vector<float> found(rows * hidden);
            attend(owned.layer, x, rows, queries, caches, found, scratch, threads);
            CHECK(found == expected);
        }
    }
    set_isa(chosen);
    CHECK_THROWS(attend(owned.layer, x, rows, queries, std::span(caches).first(4), expected, scratch),
                 std::invalid_argument, "rows is 13, the caches have 11 new tokens");
    caches[2].new_tokens = 2;
    CHECK_THROWS(attend(owned.layer, x, rows, queries, caches, expected, scratch), std::invalid_argument,
                 "a sequence has more new tokens than tokens: 2 of 1");
}

void test_refusals() {
    Owned owned(2);
    DecoderLayer other = owned.layer;
    other.head_size = 40;
    CHECK_THROWS(check(other), std::invalid_argument, "head_size is 40, it must be a multiple of 16");
    other = owned.layer;
    other.kv_heads = 3;
    CHECK_THROWS(check(other), std::invalid_argument, "heads is 4, it must be a multiple of kv_heads");
    other = owned.layer;
    other.up = other.down;
    CHECK_THROWS(check(other), std::invalid_argument, "up is [64, 96], it must be [96, 64]");
    other = owned.layer;
    other.queries.scale = owned.values(hidden);
    CHECK_THROWS(check(other), std::invalid_argument, "queries has 64 values, the layer needs 48");
    CHECK_THROWS(decoder_scratch_bytes(owned.layer, -1, 1), std::invalid_argument,
                 "rows is -1, it must be from 0 to 65536");
}

// A cache that reaches behind its memory is refused, however its strides overlap.
void test_caches_keep_to_their_memory() {
    Owned owned(3);
    const std::vector<float> numbers(kv_heads * tokens * head_size);
    std::vector<float> y(hidden);
    std::vector<std::byte> scratch(decoder_scratch_bytes(owned.layer, 1, tokens));
    const auto run = [&](std::array<std::int64_t, 3> strides, std::int64_t count) {
        const KeyValueCache cache{numbers, numbers, strides, strides, 1, count};
        attend(owned.layer, owned.values(hidden), 1, owned.values(heads * head_size), {&cache, 1}, y,
               scratch);
    };
    run({0, tokens * head_size, head_size}, tokens);
    run({0, 0, 0}, tokens);
    CHECK_THROWS(run({0, tokens * head_size + 1, head_size}, tokens), std::invalid_argument,
                 "keys end behind their memory");
    CHECK_THROWS(run({0, 0, std::int64_t{1} << 31}, tokens), std::invalid_argument,
                 "keys end behind their memory");
    CHECK_THROWS(run({0, 0, -1}, tokens), std::invalid_argument, "a stride of keys is -1");
    CHECK_THROWS(run({0, 0, 0}, tokens + 1000), std::invalid_argument, "scratch has too few bytes");
}

}  // namespace

int main() {
    test_bits_are_the_same_on_every_instruction_set();
    test_caches_that_share_a_call();
    test_refusals();
    test_caches_keep_to_their_memory();
    return failures;
}
