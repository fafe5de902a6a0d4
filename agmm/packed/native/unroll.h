// Included once a path, inside its namespace: what is inlined must have the path's target.

template <typename Body, int... kIndex>
__attribute__((always_inline)) inline void unroll(Body body, std::integer_sequence<int, kIndex...>) {
    (body(std::integral_constant<int, kIndex>()), ...);
}

// Statements for p = 0 .. count - 1, unrolled at once: arrays of accumulators become registers.
#undef AGMM_EACH
#define AGMM_EACH(p, count, ...) \
    unroll([&](auto p) __attribute__((always_inline)) { __VA_ARGS__; }, std::make_integer_sequence<int, count>())
