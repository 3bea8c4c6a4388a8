#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "byte_view.hpp"
#include "number_view.hpp"
#include "orbitsplit/decoder.hpp"
#include "unlocked.hpp"

namespace py = pybind11;

namespace {

using orbitsplit::Execution;

// Keys or values [sequences, kv_heads, tokens, head_size], read where they are.
struct CacheView {
    std::span<const float> memory;
    std::array<std::int64_t, 3> strides;
};

CacheView cache_view(const py::array& array, const char* name) {
    constexpr auto size = static_cast<py::ssize_t>(sizeof(float));
    if (array.ndim() != 4 || !array.dtype().equal(py::dtype::of<float>()) ||
        (array.shape(3) > 1 && array.strides(3) != size))
        throw std::invalid_argument(std::string(name) +
                                    " must be float32 [sequences, kv_heads, tokens, head_size]");
    for (py::ssize_t axis = 0; axis < 4; ++axis)
        if (array.strides(axis) % size != 0)
            throw std::invalid_argument(std::string(name) + " is not aligned in memory");
    check_aligned<float>(array.data(), 0, name);
    py::ssize_t last = 1;
    for (py::ssize_t axis = 0; axis < 4; ++axis)
        last += (array.shape(axis) - 1) * (array.strides(axis) / size);
    const bool has_memory = array.size() > 0 && last > 0;
    return {{static_cast<const float*>(array.data()), has_memory ? static_cast<std::size_t>(last) : 0},
            {array.strides(0) / size, array.strides(1) / size, array.strides(2) / size}};
}

// Keys, values, visible and new tokens of a cache.
using CacheArrays = std::tuple<py::array, py::array, py::object, std::int64_t>;

orbitsplit::KeyValueCache cache_of(const CacheArrays& arrays, const ByteView& visible,
                                   const orbitsplit::DecoderLayer& layer) {
    const auto& [keys, values, unused, new_tokens] = arrays;
    const CacheView of_keys = cache_view(keys, "keys");
    const CacheView of_values = cache_view(values, "values");
    for (py::ssize_t axis = 0; axis < 4; ++axis)
        if (keys.shape(axis) != values.shape(axis))
            throw std::invalid_argument("keys and values differ in shape");
    if (keys.shape(1) != layer.kv_heads || keys.shape(3) != layer.head_size)
        throw std::invalid_argument("keys must have " + std::to_string(layer.kv_heads) + " heads of " +
                                    std::to_string(layer.head_size));
    return {of_keys.memory, of_values.memory, of_keys.strides, of_values.strides,
            keys.shape(0),  keys.shape(2),    new_tokens,      numbers<std::uint8_t>(visible, "visible")};
}

orbitsplit::Activation activation_of(int activation) {
    if (activation != 0 && activation != 1)
        throw std::invalid_argument("activation " + std::to_string(activation) +
                                    " is unknown; 0 is silu, 1 is gelu_tanh");
    return static_cast<orbitsplit::Activation>(activation);
}

// Working memory that a thread keeps for its next call: allocated each time, it is returned to the system each time, and
// its pages are cleared again. A call takes it and gives it back, because a signal handler may begin another one on the
// same thread, in the middle of this one.
class Scratch {
  public:
    explicit Scratch(std::uint64_t bytes) : memory_(std::move(kept_)), size_(std::exchange(kept_size_, 0)) {
        if (bytes <= size_) return;
        memory_.reset();
        memory_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
        size_ = bytes;
    }
    ~Scratch() {
        kept_ = std::move(memory_);
        kept_size_ = size_;
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    std::span<std::byte> memory() const { return {memory_.get(), static_cast<std::size_t>(size_)}; }

  private:
    static thread_local std::unique_ptr<std::byte[]> kept_;
    static thread_local std::uint64_t kept_size_;

    std::unique_ptr<std::byte[]> memory_;
    std::uint64_t size_;
};

thread_local std::unique_ptr<std::byte[]> Scratch::kept_;
thread_local std::uint64_t Scratch::kept_size_ = 0;

// A layer on arrays that it keeps. `matrices` has (data, format, rows, columns) by name, `biases` and `scales` arrays for
// the names that have one.
class Layer {
  public:
    Layer(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_size, float attention_scale,
          int activation, float epsilon, const py::dict& matrices, const py::dict& biases,
          const py::dict& scales) {
        layer_.heads = heads;
        layer_.kv_heads = kv_heads;
        layer_.head_size = head_size;
        layer_.attention_scale = attention_scale;
        layer_.activation = activation_of(activation);
        const std::pair<const char*, orbitsplit::QuantizedLinear*> linears[] = {
            {"query", &layer_.query},   {"key", &layer_.key},   {"value", &layer_.value},
            {"output", &layer_.output}, {"gate", &layer_.gate}, {"up", &layer_.up},
            {"down", &layer_.down}};
        for (const auto& [name, linear] : linears) {
            const py::tuple matrix = matrices[name];
            linear->weight = {weight_format(matrix[1].cast<int>()), matrix[2].cast<std::int64_t>(),
                              matrix[3].cast<std::int64_t>(), keep(matrix[0]).bytes()};
            linear->bias = kept_floats(biases, name);
        }
        const std::pair<const char*, orbitsplit::RmsNorm*> norms[] = {
            {"before_attention", &layer_.before_attention},
            {"queries", &layer_.queries},
            {"keys", &layer_.keys},
            {"after_attention", &layer_.after_attention},
            {"before_mlp", &layer_.before_mlp},
            {"after_mlp", &layer_.after_mlp}};
        for (const auto& [name, norm] : norms) *norm = {kept_floats(scales, name), epsilon};
        orbitsplit::check(layer_);
    }

    void project(const py::object& x, std::int64_t rows, const py::object& cosines, const py::object& sines,
                 const py::object& queries, const py::object& keys, const py::object& values,
                 int threads) const {
        const ByteView of_x(x), of_cosines(cosines), of_sines(sines);
        const ByteView of_queries(queries, Access::write), of_keys(keys, Access::write),
            of_values(values, Access::write);
        const Scratch scratch(orbitsplit::decoder_scratch_bytes(layer_, rows, 0));
        unlocked(weight_bytes(), threads, [&](const Execution& execution) {
            orbitsplit::project(layer_, numbers<float>(of_x, "x"), rows,
                                numbers<float>(of_cosines, "cosines"), numbers<float>(of_sines, "sines"),
                                writable(of_queries, "queries"), writable(of_keys, "keys"),
                                writable(of_values, "values"), scratch.memory(), execution);
        });
    }

    void attend(const py::object& x, std::int64_t rows, const py::object& queries,
                const std::vector<CacheArrays>& caches, const py::object& out, int threads) const {
        const ByteView of_x(x), of_queries(queries), of_out(out, Access::write);
        std::deque<ByteView> visible;
        std::vector<orbitsplit::KeyValueCache> views;
        std::int64_t tokens = 0;
        for (const CacheArrays& arrays : caches) {
            views.push_back(cache_of(arrays, visible.emplace_back(std::get<2>(arrays)), layer_));
            tokens = std::max(tokens, views.back().tokens);
        }
        const Scratch scratch(orbitsplit::decoder_scratch_bytes(layer_, rows, tokens));
        unlocked(weight_bytes(), threads, [&](const Execution& execution) {
            orbitsplit::attend(layer_, numbers<float>(of_x, "x"), rows, numbers<float>(of_queries, "queries"),
                               views, writable(of_out, "out"), scratch.memory(), execution);
        });
    }

  private:
    const ByteView& keep(const py::handle& object) {
        return *kept_.emplace_back(std::make_unique<ByteView>(object));
    }

    std::span<const float> kept_floats(const py::dict& arrays, const char* name) {
        return arrays.contains(name) ? numbers<float>(keep(arrays[name]), name) : std::span<const float>{};
    }

    std::size_t weight_bytes() const { return layer_.gate.weight.data.size() + layer_.up.weight.data.size(); }

    orbitsplit::DecoderLayer layer_;
    std::vector<std::unique_ptr<ByteView>> kept_;
};

}  // namespace

void bind_decoder(py::module_& m) {
    // An ordinary class, as in the stub.
    const py::metaclass plain(reinterpret_cast<PyObject*>(&PyType_Type));
    py::class_<Layer>(m, "DecoderLayer", plain)
        .def(py::init<std::int64_t, std::int64_t, std::int64_t, float, int, float, py::dict, py::dict,
                      py::dict>(),
             py::arg("heads"), py::arg("kv_heads"), py::arg("head_size"), py::arg("attention_scale"),
             py::arg("activation"), py::arg("epsilon"), py::arg("matrices"), py::arg("biases"),
             py::arg("scales"))
        .def("project", &Layer::project, py::arg("x"), py::arg("rows"), py::arg("cosines"), py::arg("sines"),
             py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("threads") = 1)
        .def("attend", &Layer::attend, py::arg("x"), py::arg("rows"), py::arg("queries"), py::arg("caches"),
             py::arg("out"), py::arg("threads") = 1);
}
