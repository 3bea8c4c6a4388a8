#include "orbitsplit/decoder.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "decoder/kernels/kernels.hpp"
#include "support/pool.hpp"
#include "support/stop.hpp"

namespace orbitsplit {

namespace decoder {

namespace {

constexpr std::size_t alignment = 64;

// Multiplications in attention for which more than one thread pays.
constexpr std::size_t parallel_work = std::size_t{1} << 18;

// With these, no size of an array overflows, though a cache of stride 0 has tokens without memory for each.
constexpr std::int64_t most_rows = std::int64_t{1} << 16;
constexpr std::int64_t most_heads = std::int64_t{1} << 16;
constexpr std::int64_t most_tokens = std::int64_t{1} << 28;
constexpr std::int64_t most_columns = std::int64_t{1} << 31;

std::size_t padded(std::size_t count) { return (count + lanes - 1) / lanes * lanes; }

void check_range(const char* what, std::int64_t value, std::int64_t least, std::int64_t most) {
    if (value < least || value > most)
        throw std::invalid_argument(std::string(what) + " is " + std::to_string(value) +
                                    ", it must be from " + std::to_string(least) + " to " +
                                    std::to_string(most));
}

void check_multiple(const char* what, std::int64_t value, const char* of, std::int64_t unit) {
    if (value % unit != 0)
        throw std::invalid_argument(std::string(what) + " is " + std::to_string(value) +
                                    ", it must be a multiple of " + of);
}

void check_size(const char* what, std::size_t found, std::size_t needed) {
    if (found != needed)
        throw std::invalid_argument(std::string(what) + " has " + std::to_string(found) +
                                    " values, the layer needs " + std::to_string(needed));
}

void check_norm(const char* what, const RmsNorm& norm, std::int64_t size) {
    if (norm.scale.empty()) return;
    check_size(what, norm.scale.size(), static_cast<std::size_t>(size));
    if (!(norm.epsilon >= 0.0F && norm.epsilon <= std::numeric_limits<float>::max()))
        throw std::invalid_argument(std::string("epsilon of ") + what + " must be finite and at least 0");
}

void check_linear(const char* what, const QuantizedLinear& linear, std::int64_t rows, std::int64_t columns) {
    const WeightMatrix& weight = linear.weight;
    if (weight.rows != rows || weight.columns != columns)
        throw std::invalid_argument(std::string(what) + " is [" + std::to_string(weight.rows) + ", " +
                                    std::to_string(weight.columns) + "], it must be [" +
                                    std::to_string(rows) + ", " + std::to_string(columns) + "]");
    if (weight.data.size() != quantized_bytes(weight.format, rows, columns))
        throw std::invalid_argument(std::string(what) + " has " + std::to_string(weight.data.size()) +
                                    " bytes, the shape needs " +
                                    std::to_string(quantized_bytes(weight.format, rows, columns)));
    if (!linear.bias.empty()) check_size("a bias", linear.bias.size(), static_cast<std::size_t>(rows));
}

struct Sizes {
    std::size_t hidden, width, heads, kv_heads, head_size, of_queries, of_keys;
};

Sizes sizes_of(const DecoderLayer& layer) {
    const auto size = [](std::int64_t value) { return static_cast<std::size_t>(value); };
    return {size(layer.query.weight.columns),
            size(layer.gate.weight.rows),
            size(layer.heads),
            size(layer.kv_heads),
            size(layer.head_size),
            size(layer.heads * layer.head_size),
            size(layer.kv_heads * layer.head_size)};
}

// Where a new token is: its cache, and its row there.
struct Place {
    std::size_t cache;
    std::size_t row;
};

// Working memory in parts that begin at cache lines.
class Scratch {
  public:
    explicit Scratch(std::span<std::byte> memory) : rest_(memory) {}

    std::span<std::byte> bytes(std::size_t count) {
        void* start = rest_.data();
        std::size_t space = rest_.size();
        if (std::align(alignment, count, start, space) == nullptr)
            throw std::invalid_argument(
                "scratch has too few bytes: decoder_scratch_bytes() says how many are needed");
        rest_ = {static_cast<std::byte*>(start) + count, space - count};
        return {static_cast<std::byte*>(start), count};
    }
    std::span<float> floats(std::size_t count) {
        return {reinterpret_cast<float*>(bytes(count * sizeof(float)).data()), count};
    }
    std::span<Place> places(std::size_t count) {
        return {reinterpret_cast<Place*>(bytes(count * sizeof(Place)).data()), count};
    }

  private:
    std::span<std::byte> rest_;
};

// A call on one layer: what all its steps read.
struct Call {
    const DecoderLayer& layer;
    const Kernels& kernels;
    Sizes sizes;
    std::size_t rows;
    std::span<std::byte> scratch;  // of products
    const Execution& execution;

    // y = x W^T + b
    void multiply(const QuantizedLinear& linear, std::span<const float> x, std::span<float> y) const {
        orbitsplit::multiply(linear.weight, x, static_cast<std::int64_t>(rows), y, scratch, execution);
        if (linear.bias.empty()) return;
        for (std::size_t row = 0; row < rows; ++row)
            kernels.add(y.data() + row * linear.bias.size(), linear.bias.data(), linear.bias.size());
    }

    // Each row of `size` floats, or a copy of it where there is no norm.
    void normalise(const RmsNorm& norm, std::span<const float> x, std::size_t size,
                   std::span<float> out) const {
        if (norm.scale.empty()) {
            if (out.data() != x.data()) std::copy(x.begin(), x.end(), out.begin());
            return;
        }
        for (std::size_t at = 0; at < x.size(); at += size)
            kernels.normalise(x.data() + at, size, norm.scale.data(), norm.epsilon, out.data() + at);
    }

    // x += rms(y), in place.
    void add_normalised(const RmsNorm& norm, std::span<float> y, std::span<float> x) const {
        normalise(norm, y, sizes.hidden, y);
        kernels.add(x.data(), y.data(), x.size());
    }
};

std::size_t product_bytes(const DecoderLayer& layer, std::int64_t rows) {
    const std::int64_t columns =
        std::max({layer.query.weight.columns, layer.output.weight.columns, layer.down.weight.columns});
    return static_cast<std::size_t>(product_scratch_bytes(rows, columns));
}

Call begin(const DecoderLayer& layer, std::span<const float> x, std::int64_t rows, Scratch& scratch,
           const Execution& execution) {
    check(layer);
    check_range("rows", rows, 0, most_rows);
    pool::check_threads(execution.threads);
    const Sizes sizes = sizes_of(layer);
    const auto count = static_cast<std::size_t>(rows);
    check_size("x", x.size(), count * sizes.hidden);
    return {layer, active(), sizes, count, scratch.bytes(product_bytes(layer, rows)), execution};
}

void rotate_heads(const Call& call, std::span<float> x, std::span<const float> cosines,
                  std::span<const float> sines) {
    const std::size_t size = call.sizes.head_size;
    const std::size_t of_row = x.size() / call.rows;
    for (std::size_t row = 0; row < call.rows; ++row)
        for (std::size_t at = 0; at < of_row; at += size)
            call.kernels.rotate(x.data() + row * of_row + at, size, cosines.data() + row * size,
                                sines.data() + row * size);
}

void check_memory(const char* what, const char* stride, std::span<const float> memory,
                  const std::array<std::int64_t, 3>& strides, const KeyValueCache& cache,
                  const DecoderLayer& layer) {
    const std::array<std::int64_t, 3> counts = {cache.sequences, layer.kv_heads, cache.tokens};
    std::uint64_t last = static_cast<std::uint64_t>(layer.head_size);
    for (std::size_t axis = 0; axis < counts.size(); ++axis) {
        check_range(stride, strides[axis], 0, most_columns);
        // At most 2^59 each.
        last += static_cast<std::uint64_t>(counts[axis] - 1) * static_cast<std::uint64_t>(strides[axis]);
    }
    if (last > memory.size()) throw std::invalid_argument(std::string(what) + " end behind their memory");
}

struct Attention {
    const Call& call;
    std::span<const KeyValueCache> caches;
    std::span<const Place> places;
    std::span<const float> queries;
    std::span<float> scores;  // [rows, heads, room]
    std::size_t room;
    std::span<float> out;

    Seen seen(const Place& place, std::size_t key_head) const {
        const KeyValueCache& cache = caches[place.cache];
        const auto tokens = static_cast<std::size_t>(cache.tokens);
        const auto new_tokens = static_cast<std::size_t>(cache.new_tokens);
        const std::size_t sequence = place.row / new_tokens;
        const auto at = [&](const std::array<std::int64_t, 3>& strides) {
            return sequence * static_cast<std::size_t>(strides[0]) +
                   key_head * static_cast<std::size_t>(strides[1]);
        };
        const std::size_t causal = tokens - new_tokens + place.row % new_tokens + 1;
        return {cache.keys.data() + at(cache.key_strides),
                cache.values.data() + at(cache.value_strides),
                static_cast<std::size_t>(cache.key_strides[2]),
                static_cast<std::size_t>(cache.value_strides[2]),
                cache.visible.empty() ? causal : tokens,
                cache.visible.empty() ? nullptr : cache.visible.data() + place.row * tokens};
    }

    // The query heads of one key head of one row.
    void run(std::size_t part) const {
        const Sizes& sizes = call.sizes;
        const std::size_t row = part / sizes.kv_heads;
        const std::size_t key_head = part % sizes.kv_heads;
        const std::size_t group = sizes.heads / sizes.kv_heads;
        const std::size_t at = row * sizes.of_queries + key_head * group * sizes.head_size;
        call.kernels.attend(queries.data() + at, group, sizes.head_size, call.layer.attention_scale,
                            seen(places[row], key_head), scores.data() + part * group * room, room,
                            out.data() + at);
    }
};

void check_cache(const KeyValueCache& cache, const DecoderLayer& layer) {
    check_range("sequences", cache.sequences, 1, most_rows);
    check_range("tokens", cache.tokens, 1, most_tokens);
    check_range("new_tokens", cache.new_tokens, 0, most_rows);
    if (cache.new_tokens > cache.tokens)
        throw std::invalid_argument("a sequence has more new tokens than tokens: " +
                                    std::to_string(cache.new_tokens) + " of " + std::to_string(cache.tokens));
    if (!cache.visible.empty())
        check_size("visible", cache.visible.size(),
                   static_cast<std::size_t>(cache.sequences * cache.new_tokens * cache.tokens));
    check_memory("keys", "a stride of keys", cache.keys, cache.key_strides, cache, layer);
    check_memory("values", "a stride of values", cache.values, cache.value_strides, cache, layer);
}

void check_caches(std::span<const KeyValueCache> caches, const Call& call) {
    const auto rows = static_cast<std::int64_t>(call.rows);
    std::int64_t found = 0;
    for (const KeyValueCache& cache : caches) {
        check_cache(cache, call.layer);
        found += cache.sequences * cache.new_tokens;  // at most 2^32 each, and no more follow
        if (found > rows) break;
    }
    if (found != rows)
        throw std::invalid_argument("rows is " + std::to_string(rows) + ", the caches have " +
                                    (found > rows ? "more" : std::to_string(found)) + " new tokens");
}

std::int64_t longest(std::span<const KeyValueCache> caches) {
    std::int64_t tokens = 0;
    for (const KeyValueCache& cache : caches) tokens = std::max(tokens, cache.tokens);
    return tokens;
}

// o of all rows, before its projection.
void attend_heads(const Call& call, std::span<const float> queries, std::span<const KeyValueCache> caches,
                  Scratch& memory, std::span<float> out) {
    const std::span<Place> places = memory.places(call.rows);
    std::size_t work = 0;
    std::size_t row = 0;
    for (std::size_t k = 0; k < caches.size(); ++k) {
        const auto count = static_cast<std::size_t>(caches[k].sequences * caches[k].new_tokens);
        for (std::size_t own = 0; own < count; ++own) places[row++] = {k, own};
        work += count * call.sizes.of_queries * static_cast<std::size_t>(caches[k].tokens);
    }
    const std::size_t parts = call.rows * call.sizes.kv_heads;
    const std::size_t room = padded(static_cast<std::size_t>(longest(caches)));
    const std::span<float> scores = memory.floats(call.rows * call.sizes.heads * room);
    const Attention attention{call, caches, places, queries, scores, room, out};
    pool::run_parts(parts, work >= parallel_work ? call.execution.threads : 1, [&](std::size_t part) {
        throw_if_stopped(call.execution);
        attention.run(part);
    });
}

}  // namespace

}  // namespace decoder

void check(const DecoderLayer& layer) {
    using namespace decoder;
    check_range("heads", layer.heads, 1, most_heads);
    check_range("kv_heads", layer.kv_heads, 1, most_heads);
    check_range("head_size", layer.head_size, 16, most_columns);
    check_multiple("head_size", layer.head_size, "16", 16);
    check_multiple("heads", layer.heads, "kv_heads", layer.kv_heads);
    if (layer.activation != Activation::silu && layer.activation != Activation::gelu_tanh)
        throw std::invalid_argument("activation " + std::to_string(static_cast<int>(layer.activation)) +
                                    " is unknown; 0 is silu, 1 is gelu_tanh");
    const std::int64_t hidden = layer.query.weight.columns;
    const std::int64_t width = layer.gate.weight.rows;
    const std::int64_t of_queries = layer.heads * layer.head_size;
    const std::int64_t of_keys = layer.kv_heads * layer.head_size;
    check_range("hidden", hidden, 1, most_columns);
    check_range("the intermediate size", width, 1, most_columns);
    check_linear("query", layer.query, of_queries, hidden);
    check_linear("key", layer.key, of_keys, hidden);
    check_linear("value", layer.value, of_keys, hidden);
    check_linear("output", layer.output, hidden, of_queries);
    check_linear("gate", layer.gate, width, hidden);
    check_linear("up", layer.up, width, hidden);
    check_linear("down", layer.down, hidden, width);
    check_norm("before_attention", layer.before_attention, hidden);
    check_norm("queries", layer.queries, layer.head_size);
    check_norm("keys", layer.keys, layer.head_size);
    check_norm("after_attention", layer.after_attention, hidden);
    check_norm("before_mlp", layer.before_mlp, hidden);
    check_norm("after_mlp", layer.after_mlp, hidden);
}

std::uint64_t decoder_scratch_bytes(const DecoderLayer& layer, std::int64_t rows, std::int64_t tokens) {
    using namespace decoder;
    check(layer);
    check_range("rows", rows, 0, most_rows);
    check_range("tokens", tokens, 0, most_tokens);
    const Sizes sizes = sizes_of(layer);
    const std::size_t floats = 2 * sizes.hidden + 2 * sizes.width + sizes.of_queries +
                               sizes.heads * padded(static_cast<std::size_t>(tokens));
    constexpr std::size_t parts = 8;
    return product_bytes(layer, rows) +
           static_cast<std::size_t>(rows) * (floats * sizeof(float) + sizeof(Place)) + parts * alignment;
}

void project(const DecoderLayer& layer, std::span<const float> x, std::int64_t rows,
             std::span<const float> cosines, std::span<const float> sines, std::span<float> queries,
             std::span<float> keys, std::span<float> values, std::span<std::byte> scratch,
             const Execution& execution) {
    using namespace decoder;
    Scratch memory(scratch);
    const Call call = begin(layer, x, rows, memory, execution);
    const Sizes& sizes = call.sizes;
    check_size("cosines", cosines.size(), call.rows * sizes.head_size);
    check_size("sines", sines.size(), call.rows * sizes.head_size);
    check_size("queries", queries.size(), call.rows * sizes.of_queries);
    check_size("keys", keys.size(), call.rows * sizes.of_keys);
    check_size("values", values.size(), call.rows * sizes.of_keys);
    if (call.rows == 0) return;
    const std::span<float> normalised = memory.floats(x.size());
    call.normalise(layer.before_attention, x, sizes.hidden, normalised);
    call.multiply(layer.query, normalised, queries);
    call.multiply(layer.key, normalised, keys);
    call.multiply(layer.value, normalised, values);
    call.normalise(layer.queries, queries, sizes.head_size, queries);
    call.normalise(layer.keys, keys, sizes.head_size, keys);
    rotate_heads(call, queries, cosines, sines);
    rotate_heads(call, keys, cosines, sines);
}

void attend(const DecoderLayer& layer, std::span<const float> x, std::int64_t rows,
            std::span<const float> queries, std::span<const KeyValueCache> caches, std::span<float> y,
            std::span<std::byte> scratch, const Execution& execution) {
    using namespace decoder;
    Scratch memory(scratch);
    const Call call = begin(layer, x, rows, memory, execution);
    const Sizes& sizes = call.sizes;
    check_size("y", y.size(), x.size());
    check_size("queries", queries.size(), call.rows * sizes.of_queries);
    check_caches(caches, call);
    if (call.rows == 0) return;
    const std::span<float> attended = memory.floats(queries.size());
    attend_heads(call, queries, caches, memory, attended);
    const std::span<float> hidden = memory.floats(x.size());
    const std::span<float> normalised = memory.floats(x.size());
    call.multiply(layer.output, attended, normalised);
    std::copy(x.begin(), x.end(), hidden.begin());
    call.add_normalised(layer.after_attention, normalised, hidden);
    call.normalise(layer.before_mlp, hidden, sizes.hidden, normalised);
    const std::span<float> gate = memory.floats(call.rows * sizes.width);
    const std::span<float> up = memory.floats(call.rows * sizes.width);
    call.multiply(layer.gate, normalised, gate);
    call.multiply(layer.up, normalised, up);
    call.kernels.activate[static_cast<std::size_t>(layer.activation)](gate.data(), up.data(), gate.size());
    call.multiply(layer.down, gate, normalised);
    call.add_normalised(layer.after_mlp, normalised, hidden);
    std::copy(hidden.begin(), hidden.end(), y.begin());
}

}  // namespace orbitsplit
