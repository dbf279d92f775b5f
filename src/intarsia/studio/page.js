document.addEventListener('click', event => {
  const button = event.target.closest('button.sort');
  if (!button) return;
  const heading = button.closest('th'), row = heading.parentElement, body = heading.closest('table').tBodies[0];
  const place = [...row.children].indexOf(heading), down = heading.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
  const key = line => line.children[place].dataset.value;
  [...row.children].forEach(each => each.setAttribute('aria-sort', 'none'));
  heading.setAttribute('aria-sort', down > 0 ? 'ascending' : 'descending');
  const order = (a, b) => a === '' || b === '' ? (a === '') - (b === '')
    : down * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
});
