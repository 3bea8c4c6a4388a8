// Conversion to and from bfloat16 for instruction sets without masked loads and stores. All in an anonymous
// namespace, so that each file has its own copy.
#pragma once

#include "codec/kernels/kernels.hpp"

namespace orbitsplit::kernels {

namespace {

// Elements of one type to another, a register at a time; the remainder in a padded register.
template <class From, class To, class Between>
void convert_all(const std::byte* in, std::size_t count, std::byte* out, Between between) {
    constexpr std::size_t lanes = From::lanes;
    const std::size_t whole = count / lanes * lanes;
    for (std::size_t i = 0; i < whole; i += lanes)
        To::store(out + i * To::bytes, between(From::load(in + i * From::bytes)));
    if (whole == count) return;
    std::byte from[lanes * From::bytes] = {};
    std::byte to[lanes * To::bytes];
    __builtin_memcpy(from, in + whole * From::bytes, (count - whole) * From::bytes);
    To::store(to, between(From::load(from)));
    __builtin_memcpy(out + whole * To::bytes, to, (count - whole) * To::bytes);
}

template <class Element, class BF16>
void to_bf16(const std::byte* in, std::size_t count, std::byte* out) {
    convert_all<Element, BF16>(in, count, out, [](auto x) { return x; });
}

template <class Element, class BF16>
void from_bf16(const std::byte* in, std::size_t count, std::byte* out) {
    convert_all<BF16, Element>(in, count, out, [](auto x) { return Element::clamp_finite(x); });
}

template <class F32, class F16, class BF16>
constexpr Convert make_convert() {
    return {
        {to_bf16<F32, BF16>, to_bf16<F16, BF16>, to_bf16<BF16, BF16>},
        {from_bf16<F32, BF16>, from_bf16<F16, BF16>, from_bf16<BF16, BF16>},
    };
}

}  // namespace

}  // namespace orbitsplit::kernels
